"""From rows to what a program takes: columns are checked as in training, and become bags of ids and numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from stem_torchrec.data.arrays import bags_of, stacked
from stem_torchrec.data.checks import bad_rows, converted, prepared
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.type_checks import check_types
from stem_torchrec.expressions.value_types import ValueType, may_carry, type_of_arrow
from stem_torchrec.runtime.errors import DataError, UserError, nearest

_PLACE = "these rows"


@dataclass(frozen=True)
class ProgramInputs:
    """What a program takes beside its tables, for B rows; see ServedModel.forward."""

    dense: Tensor
    values: list[Tensor]
    offsets: list[Tensor]
    weights: list[Tensor]


def check_names(rows: pa.Schema, names: Iterable[str]) -> None:
    """Raises UserError for a column that the rows lack or have twice."""
    for name in names:
        if rows.names.count(name) > 1:
            raise UserError(f"the rows have several columns {name!r}; keep one of them.")
        if name not in rows.names:
            fix = nearest(name, rows.names) or "; give it, with nulls where its values are missing."
            raise UserError(f"the rows have no column {name!r}{fix}")


def check_raw(rows: pa.RecordBatch, types: Mapping[str, ValueType], *, first_row: int = 0) -> None:
    """Raises UserError for a raw column of another type, with the first row that has a value.

    Args:
        rows: raw rows.
        types: the types of the columns that are read; a column of nulls has any type.
        first_row: the number of the first row.
    """
    for name, wanted in types.items():
        column = rows.column(name)
        kind = type_of_arrow(column.type, name)
        if not may_carry(wanted, kind):
            row = pc.index(column.is_valid(), True).as_py()
            value = f"row {first_row + row} has {column[row].as_py()!r}" if row >= 0 else f"it is {column.type}"
            raise UserError(f"column {name!r} holds {kind}, but must hold {wanted}: {value}.")


def to_inputs(log_rows: pa.RecordBatch, columns: Columns, *, first_row: int = 0) -> ProgramInputs:
    """The inputs of a program from rows of a log: ids, weights and numbers.

    Args:
        log_rows: columns as the files of the log have them.
        columns: that the model reads.
        first_row: the number of the first row, for errors.

    Raises UserError for a column that is missing or of another type, and DataError for a value that training would
    refuse, with its row.

    Example::

        # tags      uid
        # [3, 7]    11
        # null      12
        to_inputs(rows, columns).values   # [[3, 7], [11, 12]]
        to_inputs(rows, columns).offsets  # [[0, 2, 2], [0, 1, 2]]
    """
    check_types(log_rows.schema, _PLACE, columns)
    table = pa.Table.from_batches([log_rows])
    table = pa.table({name: prepared(table.column(columns.column_of(name)), name, columns) for name in columns.names})
    for name in columns.names:
        for _, message in bad_rows(table, name, columns, place="row", first_row=first_row):
            raise DataError(message)
    table = pa.table({name: converted(table.column(name).combine_chunks(), name, columns) for name in columns.names})
    bags = {name: bags_of(table.column(name)) for name in columns.sparse}
    return ProgramInputs(
        dense=stacked(table, columns.dense, 0, 0.0, columns.fills),
        values=[torch.from_numpy(values.astype(np.int64)) for values, _ in bags.values()],
        offsets=[
            torch.from_numpy(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])) for _, lengths in bags.values()
        ],
        weights=[
            torch.from_numpy(bags_of(table.column(name))[0].astype(np.float32)) for name in columns.weights.values()
        ],
    )
