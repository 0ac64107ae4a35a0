"""From JSON to rows: each value is checked, and a wrong one makes its row wrong and no other."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from itertools import chain, islice
from types import NoneType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic_core import from_json

from stem_torchrec.data.column_types import items
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
    arrow_type,
)
from stem_torchrec.preparation.raw_files.cell_types import EXACT
from stem_torchrec.runtime.errors import nearest, reason_of
from stem_torchrec.server.input_columns import InputColumn
from stem_torchrec.server.refusals import RefusedError, WrongRow, shortened
from stem_torchrec.server.request_rows import RequestRows

_TYPES: dict[ValueType, set[type]] = {
    BOOL: {bool},
    INT: {int},
    FLOAT: {int, float},
    TEXT: {str},
    TIMESTAMP: {int},
    DATE: {int},
}
"""Types of Python whose values are taken as they are."""
_NEEDS = {
    BOOL: "true or false",
    INT: "a whole number of 64 bits",
    FLOAT: "a finite number",
    TEXT: "text",
    TIMESTAMP: "a time such as 2026-11-27T12:00:00Z, or microseconds since 1970",
    DATE: "a date such as 2026-11-27, or days since 1970",
}
_ABSENT = object()
_GUESSED_ROWS = _GUESSED_NAMES = 100
"""Rows without a column for which a similar name is looked for, and the names of a row that are compared with it."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_rows(body: bytes | bytearray) -> list[Any]:
    """The rows of a body: those of {"rows": [...]}, or the one that it is itself.

    Raises RefusedError for a body that is not JSON, or neither of them.

    Example::

        parse_rows(b'{"rows": [{"age": 39}, {"age": null}]}')  # [{"age": 39}, {"age": None}]
        parse_rows(b'{"age": 39}')                             # [{"age": 39}]
    """
    content = parse_object(body)
    if content.keys() != {"rows"}:
        return [content]
    if not isinstance(content["rows"], list):
        raise RefusedError(400, f"rows is {shortened(content['rows'])}, but must be a list of rows.")
    return content["rows"]


def parse_object(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object of a body; raises RefusedError for another body."""
    try:
        content = from_json(bytes(body), allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(400, f"the body is not JSON in UTF-8 ({reason_of(error)}).") from error
    if not isinstance(content, dict):
        raise RefusedError(400, f"the body is {shortened(content)}, but must be an object of JSON.")
    return content


def rows_of_json(rows: Sequence[Any], columns: Mapping[str, InputColumn]) -> RequestRows:
    """The rows as columns of Arrow, and those that are wrong; columns that are not read are left out.

    Example::

        # {"user": 7, "city": null}
        # {"user": "anna", "city": "oslo"}
        rows_of_json(rows, columns)  # one row, and row 1 is wrong: "user is 'anna', but must be a whole number ..."
    """
    wrong: dict[int, WrongRow] = {}
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            wrong[i] = WrongRow(i, None, shortened(row), f"the row is {shortened(row)}, but must be an object.")
    arrays = {}
    for name, column in columns.items():
        values = [row.get(name, _ABSENT) if isinstance(row, dict) else None for row in rows]
        arrays[name], reasons = _array_of(values, column)
        for i, reason in reasons.items():
            if i in wrong:
                continue
            if values[i] is _ABSENT:
                near = "" if len(wrong) >= _GUESSED_ROWS else nearest(name, list(islice(rows[i], _GUESSED_NAMES)))
                near = near or "; give null where its value is missing."
                wrong[i] = WrongRow(i, name, None, f"the row has no {name!r}{near}")
            else:
                shown = shortened(values[i])
                wrong[i] = WrongRow(i, name, shown, f"{name} is {shown}, but must be {reason}.")
    kept = np.array([i for i in range(len(rows)) if i not in wrong], dtype=np.int64)
    table = pa.table(arrays)
    return RequestRows(len(rows), table.take(kept) if wrong else table, kept, list(wrong.values()))


def column_of_values(name: str, values: Sequence[Any], column: InputColumn) -> pa.Array:
    """One column from values of Python; raises RefusedError for the first wrong one."""
    array, reasons = _array_of(values, column)
    for i, reason in reasons.items():
        raise RefusedError(400, f"{name}[{i}] is {shortened(values[i])}, but must be {reason}.")
    return array


def _array_of(values: Sequence[Any], column: InputColumn) -> tuple[pa.Array, dict[int, str]]:
    """The column, with null where a value is wrong, and what those values must be by row."""
    if _are_plain(values, column.kind):
        try:
            array = pa.array(values, arrow_type(column.kind))
            if _is_finite(array):
                return array, {}
        except (pa.ArrowInvalid, OverflowError):
            pass  # A number that is too large for the type, which the loop below tells.
    read, reasons = list[Any](), dict[int, str]()
    for i, value in enumerate(values):
        # Raising takes longer, and all values may be absent.
        if value is _ABSENT:
            read.append(None)
            reasons[i] = "given"
            continue
        try:
            read.append(None if value is None else _read(value, column))
        except ValueError as error:
            read.append(None)
            reasons[i] = str(error)
    return pa.array(read, arrow_type(column.kind)), reasons


def _are_plain(values: Sequence[Any], kind: ValueType) -> bool:
    """Whether all values are null or of the type; one pass without a Python loop, unlike `_read` for each."""
    if kind in LISTS:
        if not set(map(type, values)) <= {list, NoneType}:
            return False
        kind, values = LISTS[kind], list(chain.from_iterable(filter(None, values)))
    return set(map(type, values)) <= _TYPES[kind] | {NoneType}


def _is_finite(array: pa.Array) -> bool:
    """Whether numbers are finite; JSON has no infinity, but 1e999."""
    values = items(array)
    return not pa.types.is_floating(values.type) or pc.all(pc.is_finite(values)).as_py() is not False


def _read(value: Any, column: InputColumn) -> Any:
    """A value that is not null; raises ValueError with what it must be."""
    if column.kind not in LISTS:
        return _read_one(value, column.kind)
    item = LISTS[column.kind]
    one = f"{_NEEDS[item]}, or " if column.or_one else ""
    if not isinstance(value, list):
        if column.or_one:
            with suppress(ValueError):
                return [_read_one(value, item)]
        raise ValueError(f"{one}a list")
    try:
        return [None if each is None else _read_one(each, item) for each in value]
    except ValueError:
        raise ValueError(f"{one}a list, each of it {_NEEDS[item]}") from None


def _read_one(value: Any, kind: ValueType) -> Any:
    try:
        if isinstance(value, str) and kind in (TIMESTAMP, DATE):
            return _microseconds(value) if kind == TIMESTAMP else (date.fromisoformat(value) - _EPOCH.date()).days
        if isinstance(value, float) and int in _TYPES[kind] and float not in _TYPES[kind] and value.is_integer():
            # 7.0 is a whole number in JSON; beyond these a float may be another one than was meant.
            value = int(value) if abs(value) <= EXACT else value
        right = type(value) in _TYPES[kind]
        if right and kind == FLOAT:
            value = float(value)
            right = math.isfinite(value)
        elif right and type(value) is int:
            right = LEAST_INT <= value <= GREATEST_INT
    except (ValueError, OverflowError):
        right = False
    if not right:
        raise ValueError(_NEEDS[kind])
    return value


def _microseconds(text: str) -> int:
    time = datetime.fromisoformat(text)
    return (time.replace(tzinfo=time.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1)
