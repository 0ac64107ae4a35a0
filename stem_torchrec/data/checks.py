"""Which values of a column break the schema, and the type that a column without such values is read in."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stem_torchrec.data.files import Columns, items
from stem_torchrec.data.footers import is_list
from stem_torchrec.data.listing import RowGroup

_SHOWN = 60
"""Characters of a value that a message shows."""


@dataclass(frozen=True)
class _Check:
    """Values of a column that break the schema."""

    bad: pa.BooleanArray
    """By value; of lists by item."""
    need: str
    """What a value must be."""


def bad_rows(
    table: pa.Table, name: str, row_group: RowGroup, columns: Columns
) -> Iterator[tuple[NDArray[np.int64], str]]:
    """Rows in which a column breaks the schema, with a sentence about the first of them.

    Args:
        table: the rows of the row group.
        name: the column.
        row_group: where the rows are from.
        columns: the columns of the log.
    """
    column = table.column(name).combine_chunks()
    path = f"{row_group.path}, row group {row_group.index}, row"
    for check in _checks(column, name, columns):
        position = pc.index(check.bad, True).as_py()
        if position < 0:
            continue
        positions = np.flatnonzero(pc.fill_null(check.bad, False).to_numpy(zero_copy_only=False))
        rows = pc.list_parent_indices(column).to_numpy()[positions] if is_list(column.type) else positions
        value = items(column)[position].as_py()
        row = row_group.first_row + int(rows[0])
        yield rows, f"{path} {row}, column {name!r}: {'null' if value is None else value} is not {check.need}."
    for feature in (feature for feature, weights in columns.weights.items() if weights == name):
        ids, weights = row_lengths(table.column(feature).combine_chunks()), row_lengths(column)
        rows = np.flatnonzero(ids != weights)
        if len(rows):
            value, row = column[int(rows[0])].as_py(), row_group.first_row + int(rows[0])
            shown = "null" if value is None else str(value)
            shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
            count, of_row = int(ids[rows[0]]), f"of {feature!r} in this row"
            need = {0: f"null or empty: there is no id {of_row}", 1: f"one weight, for the one id {of_row}"}
            needed = need.get(count, f"{count} weights, one for each id {of_row}")
            yield rows, f"{path} {row}, column {name!r}: {shown} is not {needed}."


def row_lengths(column: pa.Array) -> NDArray[np.int32]:
    """How many values each row has: of lists their lengths, else 1; 0 for a null."""
    if is_list(column.type):
        return pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return column.is_valid().to_numpy(zero_copy_only=False)


def _checks(column: pa.Array, name: str, columns: Columns) -> Iterator[_Check]:
    values = _cast(column, name, columns)
    if name in columns.sparse:
        size = columns.sparse[name].num_embeddings
        outside = pc.or_(pc.less(values, 0), pc.greater_equal(values, size))
        # A null is an empty bag, but not an id within a list.
        yield _Check(
            pc.fill_null(outside, is_list(column.type)), f"an id in [0, {size}), the table's rows in schema.json"
        )
    if name in columns.weights.values():
        # A null is for a row without ids, but not a weight within a list.
        yield _Check(pc.invert(pc.fill_null(pc.is_finite(values), not is_list(column.type))), "a finite 32-bit float")
    if name in columns.dense:
        yield _Check(pc.invert(pc.fill_null(pc.is_finite(values), False)), "a finite 32-bit float")
    if name in columns.labels:
        yield _Check(pc.and_(pc.not_equal(values, 0), pc.not_equal(values, 1)), "0, 1 or null")
    if name == columns.group:
        yield _Check(pc.is_null(values), "an integer")


def _cast(column: pa.Array, name: str, columns: Columns) -> pa.Array:
    """The values, of lists the items, as int64 or float32."""
    whole = name in columns.sparse or name == columns.group
    # Unsafe: what does not fit becomes negative or infinite, and that is refused.
    return items(column).cast(pa.int64() if whole else pa.float32(), safe=False)


def converted(chunks: pa.ChunkedArray, name: str, columns: Columns) -> pa.Array:
    """A column without bad values in a type that does not depend on the file.

    Ids become int32 where the table allows it, since a reader holds hundreds of thousands of rows.
    """
    column = chunks.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if name in columns.sparse:
        wide = columns.sparse[name].num_embeddings > 2**31 or name == columns.group
        item = pa.int64() if wide else pa.int32()
        return column.cast(pa.list_(item) if is_list(column.type) else item)
    if is_list(column.type):
        return column.cast(pa.list_(pa.float32()), safe=False)
    if name == columns.group:
        return column.cast(columns.group_type(pa.schema([(name, column.type)])))
    return _cast(column, name, columns)
