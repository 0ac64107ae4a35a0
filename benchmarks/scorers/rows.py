"""Rows to score: those of a run's log, as ids, and raw rows with values of its vocabularies."""

from collections.abc import Iterator, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from stem_torchrec.data.columns import Columns
from stem_torchrec.expressions.expression import Call, Column, Expression
from stem_torchrec.preparation.transforms import Transforms
from stem_torchrec.serving.inputs import ProgramInputs

_OTHERS: Mapping[str, Any] = {
    **{"bool": True, "int": 1000, "float": 1.5, "text": "1"},
    **{"timestamp": datetime(2022, 5, 4), "date": date(2022, 5, 4)},
    **{"list<int>": [1], "list<float>": [1.5], "list<text>": ["1"]},
}
"""The value of a raw column that is no vocabulary's, by its type."""


def log_rows(log: str, split: str, rows: int) -> pa.RecordBatch:
    """The first rows of a split of a log, repeated where it has fewer."""
    table = pq.read_table(Path(log) / split)
    while len(table) < rows:
        table = pa.concat_tables([table, table])
    (batch,) = table.slice(0, rows).combine_chunks().to_batches()
    return batch


def raw_rows(transforms: Transforms, types: Mapping[str, Any], rows: int) -> pa.Table:
    """Raw rows: of each column that goes into a vocabulary, values of it at random.

    Args:
        transforms: of the bundle.
        types: of the raw columns that it reads.
        rows: how many.
    """
    rng = np.random.default_rng(0)
    known = {
        column: transforms.vocabularies[name]
        for tree in transforms.columns.values()
        for column, name in _vocabularies(tree)
    }
    columns = {}
    for name, kind in types.items():
        if values := known.get(name):
            columns[name] = values.take(pa.array(rng.integers(0, len(values), rows)))
        else:
            columns[name] = pa.array([_OTHERS[str(kind)]] * rows)
    return pa.table(columns)


def _vocabularies(tree: Expression) -> Iterator[tuple[str, str]]:
    """The columns that an expression looks up as they are, each with the name of its vocabulary."""
    if isinstance(tree, Call):
        if tree.function == "vocabulary" and isinstance(tree.arguments[0], Column):
            yield tree.arguments[0].name, str(tree.parameters["name"])
        for argument in tree.arguments:
            yield from _vocabularies(argument)


def jagged_parts(inputs: ProgramInputs, columns: Columns) -> dict[str, Any]:
    """What KeyedJaggedTensor takes to hold the sparse features."""
    weights = None
    if columns.weights:
        own = dict(zip(columns.weights, inputs.weights, strict=True))
        ids = dict(zip(columns.sparse, inputs.values, strict=True))
        weights = torch.cat([own.get(name, torch.ones(len(values))) for name, values in ids.items()])
    return {
        "keys": list(columns.sparse),
        "values": torch.cat(inputs.values),
        "weights": weights,
        "lengths": torch.cat([offsets.diff() for offsets in inputs.offsets]).int(),
    }
