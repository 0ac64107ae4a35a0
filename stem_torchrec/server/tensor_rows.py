"""From tensors of the Open Inference Protocol to rows: a list is two tensors, its values and its offsets."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.data.column_types import is_text
from stem_torchrec.expressions.value_types import BOOL, DATE, FLOAT, INT, LISTS, TEXT, TIMESTAMP, ValueType, arrow_type
from stem_torchrec.runtime.errors import nearest, reason_of
from stem_torchrec.server.input_columns import InputColumn
from stem_torchrec.server.json_rows import column_of_values
from stem_torchrec.server.refusals import RefusedError
from stem_torchrec.server.tensors import InferenceRequest

_DATATYPES = {BOOL: "BOOL", INT: "INT64", FLOAT: "FP64", TEXT: "BYTES", TIMESTAMP: "BYTES", DATE: "BYTES"}
VALUES, OFFSETS, MISSING = ".values", ".offsets", ".missing"
"""What the names of a list's two tensors end with, and of that which tells the missing values of a column."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in the metadata of the model."""

    name: str
    datatype: str
    shape: tuple[int, ...] = (-1,)


def tensors_of(columns: Mapping[str, InputColumn]) -> list[TensorEntry]:
    """The tensors that a request has, but for those of missing values.

    Example::

        tensors_of(columns)
        # [TensorEntry("age", "INT64"), TensorEntry("tags.values", "BYTES"), TensorEntry("tags.offsets", "INT64")]
    """
    return [entry for name, column in columns.items() for entry in _of_column(name, column.kind)]


def _of_column(name: str, kind: ValueType) -> Iterator[TensorEntry]:
    if kind in LISTS:
        yield TensorEntry(name + VALUES, _DATATYPES[LISTS[kind]])
        yield TensorEntry(name + OFFSETS, "INT64")
    else:
        yield TensorEntry(name, _DATATYPES[kind])


def table_of_tensors(request: InferenceRequest, columns: Mapping[str, InputColumn]) -> pa.Table:
    """The columns that a bundle reads, from the tensors of a request.

    Raises RefusedError for a tensor that is missing, unknown, of another datatype or another number of rows.
    """
    left = dict(request.inputs)
    arrays = {}
    for name, column in columns.items():
        if column.kind in LISTS and not (column.or_one and name in left):
            values, offsets = _taken(left, name + VALUES), _taken(left, name + OFFSETS)
            arrays[name] = _lists(name, _typed(name + VALUES, values, LISTS[column.kind]), offsets)
        else:
            values = _taken(left, name)
            if request.rows[name] != len(values):
                raise RefusedError(
                    400,
                    f"the input {name!r} has {len(values)} values in {request.rows[name]} rows, but takes one in each.",
                )
            arrays[name] = _typed(name, values, LISTS.get(column.kind, column.kind))
            if column.kind in LISTS:
                arrays[name] = _lists(name, arrays[name], pa.array(np.arange(len(values) + 1)))
        missing = left.pop(name + MISSING, None)
        if missing is not None:
            arrays[name] = _without(name, arrays[name], missing)
    for name in left:
        known = [entry.name for entry in tensors_of(columns)]
        raise RefusedError(
            400, f"the model reads no input {name!r}{nearest(name, known) or '; its metadata list them.'}"
        )
    rows = {name: len(array) for name, array in arrays.items()}
    first = next(iter(rows))
    for name, count in rows.items():
        if count != rows[first]:
            raise RefusedError(400, f"the input {name!r} has {count} rows, and {first!r} has {rows[first]}.")
    return pa.table(arrays)


def _taken(left: dict[str, pa.Array], name: str) -> pa.Array:
    if name not in left:
        raise RefusedError(400, f"the input {name!r} is missing{nearest(name, list(left)) or '.'}")
    return left.pop(name)


def _typed(name: str, values: pa.Array, kind: ValueType) -> pa.Array:
    if kind in (TIMESTAMP, DATE) and is_text(values.type):
        return column_of_values(name, values.to_pylist(), InputColumn(kind))
    number, floating = pa.types.is_integer(values.type), pa.types.is_floating(values.type)
    fits = {BOOL: pa.types.is_boolean(values.type), TEXT: is_text(values.type), FLOAT: number or floating}
    if not fits.get(kind, number):
        raise RefusedError(400, f"the input {name!r} is {values.type}, but must be {_DATATYPES[kind]}.")
    try:
        return pc.cast(values, arrow_type(kind), safe=kind != FLOAT)
    except pa.ArrowInvalid as error:
        raise RefusedError(400, f"the input {name!r} has a value beyond 64 bits ({reason_of(error)}).") from error


def _lists(name: str, values: pa.Array, offsets: pa.Array) -> pa.Array:
    if not pa.types.is_integer(offsets.type) or offsets.null_count or not len(offsets):
        raise RefusedError(400, f"the input {name + OFFSETS!r} must have whole numbers, one more than there are rows.")
    ends = offsets.to_numpy().astype(object if pa.types.is_uint64(offsets.type) else np.int64)
    if ends[0] != 0 or ends[-1] != len(values) or (ends[1:] < ends[:-1]).any():
        sentence = f"the input {name + OFFSETS!r} must rise from 0 to {len(values)}, the number of values."
        raise RefusedError(400, sentence)
    return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), values)


def _without(name: str, array: pa.Array, missing: pa.Array) -> pa.Array:
    if not pa.types.is_boolean(missing.type) or missing.null_count or len(missing) != len(array):
        raise RefusedError(400, f"the input {name + MISSING!r} must be BOOL, with true where {name!r} has no value.")
    return pc.if_else(missing, pa.scalar(None, array.type), array)
