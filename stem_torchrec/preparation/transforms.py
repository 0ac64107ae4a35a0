"""transforms.json of a log: from raw rows to the columns that a model reads, without an engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.config.formats import without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.data.new_log import TRANSFORMS_FILE, TRANSFORMS_FORMAT, VOCABULARY
from stem_torchrec.expressions.arrow_evaluation import evaluate
from stem_torchrec.expressions.expression import Call, Expression, from_json
from stem_torchrec.expressions.functions import type_of
from stem_torchrec.expressions.value_types import ValueType
from stem_torchrec.runtime.errors import UserError, reason_of

_SECTIONS = ("features", "weights", "dense")


@dataclass(frozen=True)
class Transforms:
    """What `read_transforms` reads: trees over the columns of the raw rows, after the joins of the spec."""

    types: Mapping[str, ValueType]
    """Of the raw columns."""
    columns: Mapping[str, Expression]
    """The columns of the log by name: ids, the weights of ids, and numbers, in the order of their features."""
    vocabularies: Mapping[str, pa.Array]
    """Values in the order of their ids."""


def read_transforms(log: Path) -> Transforms:
    """Reads `transforms.json` of a log, and the vocabularies that it names.

    Raises UserError with the file for what is missing or wrong.
    """
    path = log / TRANSFORMS_FILE
    try:
        content = without_format(parse_json(path.read_bytes()), TRANSFORMS_FORMAT, str(path))
        types = {name: ValueType(kind) for name, kind in content["columns"].items()}
        columns = {
            name: from_json(tree, f"{section}.{name}")
            for section in _SECTIONS
            for name, tree in content[section].items()
        }
        for tree in columns.values():
            type_of(tree, types)
    # KeyError, AttributeError: a section is missing, or is no mapping.
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}); prepare the log again.") from error
    names = {name: None for tree in columns.values() for name in vocabularies_of(tree)}
    return Transforms(types, columns, {name: _values(log, name) for name in names})


def apply_transforms(transforms: Transforms, rows: pa.RecordBatch) -> pa.RecordBatch:
    """The columns of the log for raw rows: ids as int64, weights and numbers as float32, or lists of them.

    Raises UserError for a raw column that is missing or of another type.

    Example::

        apply_transforms(read_transforms(Path("data/adult")), pa.record_batch({"age": [39], ...}))
    """
    columns = {}
    for name, tree in transforms.columns.items():
        values = evaluate(tree, rows, transforms.types, vocabularies=transforms.vocabularies)
        columns[name] = values.cast(_written(values.type))
    return pa.record_batch(columns)


def _written(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_written(kind.value_type))
    return pa.float32() if pa.types.is_floating(kind) else kind


def vocabularies_of(tree: Any) -> list[str]:
    """The names of the vocabularies that an expression reads."""
    if not isinstance(tree, Call):
        return []
    own = [str(tree.parameters["name"])] if tree.function == "vocabulary" else []
    return [*own, *(name for argument in tree.arguments for name in vocabularies_of(argument))]


def _values(log: Path, name: str) -> pa.Array:
    path = log / VOCABULARY / f"{name}.parquet"
    try:
        return pq.read_table(path, columns=["value"])["value"].combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}); prepare the log again.") from error
