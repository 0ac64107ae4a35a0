"""The types of Arrow that columns come in, and each column in the one form that the rest of `data/` reads."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_LISTS = {
    kind.id
    for kind in (
        pa.list_(pa.null()),
        pa.large_list(pa.null()),
        pa.list_(pa.null(), 1),
        pa.list_view(pa.null()),
        pa.large_list_view(pa.null()),
    )
}


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of lists, of any or of one fixed length."""
    return kind.id in _LISTS


def item_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values: of a list its items', of a dictionary that of its values."""
    if is_list(kind):
        return kind.value_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_number(kind: pa.DataType) -> bool:
    """Whether a type is one of integers, floats or decimals."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is one of UTF-8 text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def items(column: pa.Array) -> pa.Array:
    """The values of a column, of all its lists if it has lists."""
    return pc.list_flatten(column) if is_list(column.type) else column


def in_one_form(chunks: pa.ChunkedArray) -> pa.Array:
    """A column as one array without dictionaries, list views, lists of a fixed length and short decimals.

    Example::

        # dictionary of int64         int64
        # list_view of float          large_list of float
        # fixed_size_list[2] of int8  large_list of int8
        # decimal32(5, 2)             decimal128(5, 2)
    """
    column = chunks.combine_chunks()
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column.dictionary_decode()
    if pa.types.is_string_view(kind):
        return column.cast(pa.large_string())
    if is_list(kind) and not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        # Arrow's casts lose values: of list views after a null, and they leave values below the nulls of fixed lists.
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
        return pa.LargeListArray.from_arrays(offsets, pc.list_flatten(column), mask=column.is_null())
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return column.cast(pa.decimal128(kind.precision, kind.scale))
    return column


def nan_as_null(column: pa.Array) -> pa.Array:
    """A column whose NaNs are nulls."""
    if not pa.types.is_floating(column.type):
        return column
    missing = pc.is_nan(column)
    return pc.if_else(missing, pa.scalar(None, column.type), column) if pc.any(missing).as_py() else column
