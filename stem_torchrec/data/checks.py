"""Which values of a column break the schema, and the type that a column without such values is read in."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stem_torchrec.data.column_types import in_one_form, is_list, is_text, items, nan_as_null
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.type_checks import group_type

_SHOWN = 60
"""Characters of a value that a message shows."""
_EXACT = {pa.float16(): 2**11, pa.float32(): 2**24}
"""Up to which whole numbers floats are exact; beyond them, two ids may have become one."""
_EXACT_DOUBLE = 2**53


@dataclass(frozen=True)
class _Check:
    """Values of a column that break the schema."""

    bad: pa.BooleanArray
    """By value; of lists by item."""
    need: str
    """What a value must be."""


def prepared(chunks: pa.ChunkedArray, name: str, columns: Columns) -> pa.Array:
    """A column of a file in the form that is checked: see `in_one_form`; where NaN means the same as null, it is null.

    That is so for ids (not within a list), labels, and dense features with a fill.
    """
    column = in_one_form(chunks)
    if name in columns.sparse or name in columns.read_labels or name in columns.fills:
        column = nan_as_null(column)
    return column


def bad_rows(
    table: pa.Table, name: str, columns: Columns, *, place: str, first_row: int
) -> Iterator[tuple[NDArray[np.int64], str]]:
    """Rows in which a column breaks the schema, with a sentence about the first of them.

    Args:
        table: the rows, prepared.
        name: of the column.
        columns: the columns of the log.
        place: where the rows are from, which stands before the number of a row.
        first_row: the number of the first row.
    """
    column, shown = table.column(name).combine_chunks(), repr(columns.column_of(name))
    for check in _checks(column, name, columns):
        position = pc.index(check.bad, True).as_py()
        if position < 0:
            continue
        positions = np.flatnonzero(pc.fill_null(check.bad, False).to_numpy(zero_copy_only=False))
        rows = pc.list_parent_indices(column).to_numpy()[positions] if is_list(column.type) else positions
        row = first_row + int(rows[0])
        yield rows, f"{place} {row}, column {shown}: {_shown(items(column)[position])} is not {check.need}."
    for feature in (feature for feature, weights in columns.weights.items() if weights == name):
        ids, weights = row_lengths(table.column(feature).combine_chunks()), row_lengths(column)
        rows = np.flatnonzero(ids != weights)
        if len(rows):
            value, row = _shown(column[int(rows[0])]), first_row + int(rows[0])
            count, of_row = int(ids[rows[0]]), f"of {feature!r} in this row"
            need = {0: f"null or empty: there is no id {of_row}", 1: f"one weight, for the one id {of_row}"}
            needed = need.get(count, f"{count} weights, one for each id {of_row}")
            yield rows, f"{place} {row}, column {shown}: {value} is not {needed}."


def _shown(value: pa.Scalar) -> str:
    text = "null" if value.as_py() is None else str(value.as_py())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def row_lengths(column: pa.Array) -> NDArray[np.int32]:
    """How many values each row has: of lists their lengths, else 1; 0 for a null."""
    if is_list(column.type):
        return pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    if not column.null_count:
        return np.ones(len(column), np.int32)
    return column.is_valid().to_numpy(zero_copy_only=False)


def _checks(column: pa.Array, name: str, columns: Columns) -> Iterator[_Check]:
    values = items(column)
    # A null within a list is no id and no weight.
    null = is_list(column.type)
    if name in columns.sparse:
        size = columns.num_ids(name)
        yield from _check_whole(values)
        if not _within(values, 0, size - 1) or (null and values.null_count):
            numbers = _as_numbers(values)
            outside = pc.or_(pc.less(numbers, 0), pc.greater_equal(numbers, size))
            yield _Check(pc.fill_null(outside, null), f"an id in [0, {size}), the table's rows in schema.json")
    if name in columns.weights.values():
        yield _Check(_not_finite(values, accept_null=not null), "a finite 32-bit float")
    if name in columns.dense:
        yield from _check_dense(values, name, columns)
    if name in columns.read_labels:
        yield from _check_label(values, name, columns)
    if name == columns.group:
        yield _Check(pc.is_null(values, nan_is_null=True), "text" if is_text(values.type) else "an integer")
        yield from _check_whole(values)
    if name in columns.row_weights:
        numbers = _as_floats(values)
        bad = pc.or_(pc.less(numbers, 0), pc.invert(pc.is_finite(numbers)))
        yield _Check(pc.fill_null(bad, True), "a weight from 0 on: a finite 32-bit float")


def _within(values: pa.Array, least: int, greatest: int) -> bool:
    """Whether whole numbers or booleans lie in [least, greatest], nulls aside; the fast way, by two numbers."""
    if not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
        return False
    ends: dict[str, Any] = pc.min_max(values).as_py()
    return ends["min"] is None or (ends["min"] >= least and ends["max"] <= greatest)


def _check_whole(values: pa.Array) -> Iterator[_Check]:
    """Floats and decimals are ids where they are whole numbers that their type has exactly."""
    kind = values.type
    if not (pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return
    # The fraction of a decimal may be lost in a float.
    exact = values if pa.types.is_decimal(kind) else values.cast(pa.float64())
    whole, numbers = pc.equal(pc.floor(exact), exact), values.cast(pa.float64())
    yield _Check(pc.or_(pc.invert(whole), pc.is_inf(numbers)), "a whole number, as an id must be")
    limit = _EXACT.get(kind, _EXACT_DOUBLE)
    beyond = pc.greater(pc.abs(numbers), float(limit))
    yield _Check(beyond, f"an id that {kind} has exactly, as those up to {limit}; write it as an integer")


def _check_dense(values: pa.Array, name: str, columns: Columns) -> Iterator[_Check]:
    null = name in columns.fills
    if not null:
        missing = pc.is_null(values, nan_is_null=True)
        fix = f'{{"name": {_quoted(name)}, "fill": 0.0}}'
        yield _Check(missing, f"a finite 32-bit float; schema.json may give {fix} in dense_features to take its place")
    yield _Check(_not_finite(values, accept_null=True), "a finite 32-bit float")


def _check_label(values: pa.Array, name: str, columns: Columns) -> Iterator[_Check]:
    if columns.kind_of(name) == "number":
        fix = "null where it is missing, and clipped where it is too large"
        yield _Check(_not_finite(values, accept_null=True), f"a label as a number, a finite 32-bit float; write {fix}")
        return
    levels = columns.levels.get(name, 2)
    if not _within(values, 0, levels - 1):
        numbers = _as_floats(values)
        is_level = pc.and_(pc.equal(pc.floor(numbers), numbers), pc.less(numbers, levels))
        need = f"a level from 0 to {levels - 1}, as schema.json has {levels} levels, or null"
        bad = pc.invert(pc.and_(is_level, pc.greater_equal(numbers, 0)))
        yield _Check(bad, need if name in columns.levels else "0, 1 or null")


def _quoted(name: str) -> str:
    return f'"{name}"'


def _not_finite(values: pa.Array, *, accept_null: bool) -> pa.BooleanArray:
    """Which values are NaN or infinite as 32-bit floats, or null unless that is accepted."""
    return pc.invert(pc.fill_null(pc.is_finite(_as_floats(values)), accept_null))


def _as_floats(values: pa.Array) -> pa.Array:
    # Unsafe: what does not fit becomes infinite, and that is refused.
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    return values.cast(pa.float32(), safe=False)


def _as_numbers(values: pa.Array) -> pa.Array:
    """Ids as int64, or as float64 where they are floats or decimals."""
    if pa.types.is_integer(values.type) or pa.types.is_null(values.type):
        # Unsafe: a large uint64 becomes negative, and that is refused.
        return values.cast(pa.int64(), safe=False)
    return values.cast(pa.float64())


def converted(column: pa.Array, name: str, columns: Columns) -> pa.Array:
    """A column without bad values in a type that does not depend on the file, but for a column of nulls.

    Ids become int32 where the table allows it, since a reader holds hundreds of thousands of rows.
    """
    if name in columns.sparse or name in columns.weights.values():
        # Which of lists and single values its nulls stand for, only other files tell.
        if pa.types.is_null(column.type):
            return column
        if name not in columns.sparse:
            return column.cast(pa.list_(pa.float32()), safe=False) if is_list(column.type) else _as_floats(column)
        wide = columns.num_ids(name) > 2**31 or name == columns.group
        item = pa.int64() if wide else pa.int32()
        return column.cast(pa.list_(item) if is_list(column.type) else item)
    if name == columns.group:
        return column.cast(group_type(pa.schema([(columns.column_of(name), column.type)]), columns))
    return _as_floats(column)
