"""The types of the values that expressions compute with, and how columns of Arrow and of an engine carry them."""

from enum import StrEnum

import ibis.expr.datatypes as dt
import pyarrow as pa

from stem_torchrec.runtime.errors import UserError


class ValueType(StrEnum):
    """A type, by the name that a spec has for it. All values may be null; elements of lists are not."""

    BOOL = "bool"
    INT = "int"
    """64 bits, signed."""
    FLOAT = "float"
    """64 bits and finite: NaN and infinity count as null."""
    TEXT = "text"
    TIMESTAMP = "timestamp"
    """Microseconds since 1970 in UTC, as int64; from the year 1 to the year 9999, null outside."""
    DATE = "date"
    """Days since 1970, as int64; of the same years."""
    INTS = "list<int>"
    FLOATS = "list<float>"
    TEXTS = "list<text>"
    NULL = "null"
    """The type of the literal `null`, which stands for a value of any type."""


BOOL, INT, FLOAT, TEXT = ValueType.BOOL, ValueType.INT, ValueType.FLOAT, ValueType.TEXT
TIMESTAMP, DATE, NULL = ValueType.TIMESTAMP, ValueType.DATE, ValueType.NULL
INTS, FLOATS, TEXTS = ValueType.INTS, ValueType.FLOATS, ValueType.TEXTS

LISTS = {INTS: INT, FLOATS: FLOAT, TEXTS: TEXT}
"""The type of the elements of each type of lists."""
_ARROW = {BOOL: pa.bool_(), INT: pa.int64(), FLOAT: pa.float64(), TEXT: pa.string(), NULL: pa.null()}
_IBIS = {BOOL: dt.boolean, INT: dt.int64, FLOAT: dt.float64, TEXT: dt.string, NULL: dt.null}
LEAST_INT, GREATEST_INT = -(2**63), 2**63 - 1


def arrow_type(kind: ValueType) -> pa.DataType:
    """The Arrow type of evaluated values; a timestamp or a date is its number of microseconds or days.

    Example::

        arrow_type(ValueType.INTS)  # list<item: int64>
    """
    if kind in LISTS:
        return pa.list_(arrow_type(LISTS[kind]))
    return _ARROW.get(kind, pa.int64())


def ibis_type(kind: ValueType) -> dt.DataType:
    """The Ibis type of computed values; a timestamp or a date is its number of microseconds or days."""
    if kind in LISTS:
        return dt.Array(ibis_type(LISTS[kind]))
    return _IBIS.get(kind, dt.int64)


def type_of_arrow(column: pa.DataType, name: str) -> ValueType:
    """The type of the values of an Arrow column.

    Raises UserError for a type without a counterpart, such as decimals and structs.

    Example::

        type_of_arrow(pa.list_(pa.int32()), "tags")  # ValueType.INTS
    """
    if pa.types.is_dictionary(column):
        column = column.value_type
    if pa.types.is_list(column) or pa.types.is_large_list(column) or pa.types.is_fixed_size_list(column):
        element = _scalar_type(column.value_type)
        kind = next((lists for lists, elements in LISTS.items() if elements == element), None)
    else:
        kind = _scalar_type(column)
    if kind is None:
        raise UserError(f"column {name!r} is {column}, but must be one of {known_types()}; cast it in its source.")
    return kind


def _scalar_type(column: pa.DataType) -> ValueType | None:
    tests = {
        BOOL: pa.types.is_boolean,
        # Not all values of uint64 are in int64.
        INT: lambda kind: pa.types.is_integer(kind) and kind != pa.uint64(),
        FLOAT: pa.types.is_floating,
        TEXT: lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind),
        TIMESTAMP: pa.types.is_timestamp,
        DATE: pa.types.is_date,
        NULL: pa.types.is_null,
    }
    return next((kind for kind, test in tests.items() if test(column)), None)


def type_of_ibis(column: dt.DataType, name: str) -> ValueType:
    """The type of the values of a column of an engine; raises UserError as `type_of_arrow` does."""
    if isinstance(column, dt.Array):
        element = type_of_ibis(column.value_type, name)
        kind = next((lists for lists, elements in LISTS.items() if elements == element), None)
    else:
        tests = {
            BOOL: column.is_boolean(),
            INT: column.is_integer() and not column.is_uint64(),
            FLOAT: column.is_floating(),
            TEXT: column.is_string(),
            TIMESTAMP: column.is_timestamp(),
            DATE: column.is_date(),
            NULL: column.is_null(),
        }
        kind = next((each for each, holds in tests.items() if holds), None)
    if kind is None:
        raise UserError(f"column {name!r} is {column}, but must be one of {known_types()}; cast it in its source.")
    return kind


def known_types() -> str:
    """The types that a column may have: `bool, int, ...`."""
    return ", ".join(kind for kind in ValueType if kind != NULL)


def may_carry(wanted: ValueType, kind: ValueType) -> bool:
    """Whether a column of one type carries values of another: whole numbers do for floats, timestamps and dates."""
    carried = {FLOAT: INT, TIMESTAMP: INT, DATE: INT, FLOATS: INTS}
    return kind in (wanted, NULL, carried.get(wanted))
