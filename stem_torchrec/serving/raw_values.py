"""Columns of files and of JSON as values of the types of a bundle; what is wrong is marked by row, and becomes null."""

import json
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.expressions.value_types import (
    BOOL,
    DATE,
    FLOAT,
    GREATEST_INT,
    INT,
    LEAST_INT,
    LISTS,
    TEXT,
    TIMESTAMP,
    ValueType,
)
from stem_torchrec.preparation.raw_files.cell_types import EXACT
from stem_torchrec.serving.text_values import Values, values_of_texts

Given: TypeAlias = pa.Array | list[Any]
"""A column as a reader gives it: of Arrow, or the values of JSON, which may be of different types."""


_DAYS = 10_000 * 366
"""Days since 1970 until after the year 9999."""


class TypeMismatchError(TypeError):
    """A column of Arrow is of a type of which no value can be made that is wanted."""


def typed(column: Given, wanted: ValueType) -> Values:
    """A column as values of a type, by the rules of preparation: the text 7, or 7.0, is the int 7, and 7 the text 7.

    Raises TypeMismatchError for an Arrow column of another type, such as timestamps for ints.

    Example::

        typed([3, "4", "x", {}], ValueType.INT)  # [3, 4, null, null], [False, False, True, True]
    """
    return _of_json(column, wanted) if isinstance(column, list) else _of_arrow(column, wanted)


def _of_json(values: list[Any], wanted: ValueType) -> Values:
    # Mixed values, a whole number beyond 64 bits, and text that is no UTF-8 are looked at one by one.
    with suppress(pa.ArrowException, TypeMismatchError, OverflowError, UnicodeEncodeError):
        return _of_arrow(pa.array(values), wanted)
    parts, wrong = [], np.zeros(len(values), dtype=bool)
    kind = _of_arrow(pa.nulls(0), wanted)[0].type
    for i, value in enumerate(values):
        part = pa.nulls(1, kind)
        try:
            part, [wrong[i]] = _of_arrow(pa.array([value]), wanted)
        except (pa.ArrowException, TypeMismatchError, OverflowError, UnicodeEncodeError):
            wrong[i] = True
        parts.append(part)
    return pa.concat_arrays(parts), wrong


def _of_arrow(column: pa.Array, wanted: ValueType) -> Values:
    given = column.type
    if pa.types.is_dictionary(given):
        return _of_arrow(column.dictionary_decode(), wanted)
    if pa.types.is_null(given):
        return pa.nulls(len(column), _TYPES[wanted]), np.zeros(len(column), dtype=bool)
    if wanted in LISTS:
        return _lists(column, wanted)
    if _is_text(given):
        return values_of_texts(column.cast(pa.string()), wanted)
    if pa.types.is_floating(given) and wanted == INT:
        return _whole(column)
    if pa.types.is_decimal(given) and wanted == INT:
        return _whole_decimals(column)
    if given == pa.uint64() and wanted == INT:
        return _without(column, pc.greater(column, pa.scalar(GREATEST_INT, pa.uint64())), pa.int64())
    if not _carries(given, wanted):
        raise TypeMismatchError(f"it is {given}")
    if pa.types.is_timestamp(given):
        # As a number, since a cast to a type without a zone would give the clock of that zone.
        column = column.cast(pa.timestamp("us", given.tz), safe=False).cast(pa.int64())
    elif wanted == TIMESTAMP:
        column = column.cast(pa.int64(), safe=False)
    elif wanted == DATE and pa.types.is_integer(given):
        # No calendar has a day beyond, and not each number fits a date.
        column = pc.if_else(pc.less(pc.abs(column.cast(pa.int64(), safe=False)), _DAYS), column, None).cast(pa.int32())
    return column.cast(_TYPES[wanted], safe=False), np.zeros(len(column), dtype=bool)


def _carries(given: pa.DataType, wanted: ValueType) -> bool:
    """Whether every value of a type is one of the wanted type."""
    whole, types = pa.types.is_integer(given), pa.types
    if wanted == FLOAT:
        return whole or types.is_floating(given) or types.is_decimal(given)
    if wanted == TIMESTAMP:
        return whole or types.is_timestamp(given)
    if wanted == DATE:
        return whole or types.is_date(given)
    if wanted == BOOL:
        return bool(types.is_boolean(given))
    return whole or (wanted == INT and types.is_boolean(given))


def _whole(numbers: pa.Array) -> Values:
    """Numbers as int64; NaN is null, and a fraction is wrong, as is what a double does not have exactly."""
    exact = numbers.cast(pa.float64())
    missing = pc.is_null(exact, nan_is_null=True)
    fits = pc.and_(pc.equal(pc.floor(exact), exact), pc.less(pc.abs(exact), float(EXACT)))
    return _without(pc.if_else(missing, None, exact), pc.and_not(pc.invert(fits), missing), pa.int64())


def _whole_decimals(numbers: pa.Array) -> Values:
    """Decimals as int64, exactly; a fraction is wrong. One by one, as a decimal of Arrow has no room to compare all."""
    values, wrong = numbers.to_pylist(), np.zeros(len(numbers), dtype=bool)
    for i, value in enumerate(values):
        if value is not None:
            wrong[i] = value != value.to_integral_value() or not LEAST_INT <= value <= GREATEST_INT
            values[i] = None if wrong[i] else int(value)
    return pa.array(values, pa.int64()), wrong


def _without(column: pa.Array, wrong: pa.BooleanArray, kind: pa.DataType) -> Values:
    mask = pc.fill_null(wrong, False)
    return pc.if_else(mask, None, column).cast(kind), mask.to_numpy(zero_copy_only=False)


def _lists(column: pa.Array, wanted: ValueType) -> Values:
    given = column.type
    if _is_text(given):
        return _lists_of_texts(column, wanted)
    if not (pa.types.is_list(given) or pa.types.is_large_list(given) or pa.types.is_fixed_size_list(given)):
        raise TypeMismatchError(f"it is {given}")
    column = column.cast(pa.list_(given.value_type))
    items, wrong = _of_arrow(column.flatten(), LISTS[wanted])
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int32)]).astype(np.int32))
    bad = np.zeros(len(column), dtype=bool)
    bad[np.repeat(np.arange(len(column)), lengths)[wrong]] = True
    gone = column.is_null().to_numpy(zero_copy_only=False) | bad
    return pa.ListArray.from_arrays(offsets, items, mask=pa.array(gone)), bad


def _lists_of_texts(texts: pa.Array, wanted: ValueType) -> Values:
    """Lists in cells of CSV, written as those of JSON."""
    values: list[Any] = []
    for text in texts.to_pylist():
        value = text
        if text is not None:
            with suppress(ValueError, RecursionError):
                value = json.loads(text)
        # A text that is no list is wrong, and stays as it is, as a wrong value.
        values.append(value)
    wrong = np.array([value is not None and not isinstance(value, list) for value in values], dtype=bool)
    lists = [None if bad else value for value, bad in zip(values, wrong, strict=True)]
    column, bad_items = _of_json(lists, wanted)
    return column, wrong | bad_items


def typed_or_lists(column: Given, wanted: ValueType) -> Values:
    """A column of CSV or JSON in which a row has one value or a list of them; all are lists where one is.

    A row has the same values whichever rows are beside it.

    Example::

        typed_or_lists(pa.array(["007", "[1, 2]", "nan"]), ValueType.INT)  # [[7], [1, 2], null], [False, False, False]
    """
    values = column.to_pylist() if isinstance(column, pa.Array) else column
    are_lists = [is_list(value) for value in values]
    if not any(are_lists):
        return typed(column, wanted)
    ones: Given = [None if listed else value for value, listed in zip(values, are_lists, strict=True)]
    many: Given = [value if listed else None for value, listed in zip(values, are_lists, strict=True)]
    if isinstance(column, pa.Array):
        ones, many = pa.array(ones, pa.string()), pa.array(many, pa.string())
    (of_ones, wrong), (of_lists, wrong_lists) = typed(ones, wanted), typed(many, LIST_OF[wanted])
    merged = [
        items if listed else None if value is None else [value]
        for value, items, listed in zip(of_ones.to_pylist(), of_lists.to_pylist(), are_lists, strict=True)
    ]
    return pa.array(merged, of_lists.type), wrong | wrong_lists


def is_list(value: Any) -> bool:
    """Whether a value of JSON is a list, or a cell of CSV begins as one."""
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


_SCALARS = {
    BOOL: pa.bool_(), INT: pa.int64(), FLOAT: pa.float64(), TEXT: pa.string(), TIMESTAMP: pa.timestamp("us"),
    DATE: pa.date32(),
}  # fmt: skip
LIST_OF = {kind: lists for lists, kind in LISTS.items()}
"""The lists of values of a type."""
_TYPES = _SCALARS | {lists: pa.list_(_SCALARS[kind]) for lists, kind in LISTS.items()}
"""What columns without a value become."""
