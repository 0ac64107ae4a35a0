"""Texts of CSV and JSON as values, by the rules of preparation/rows/cell_values.py, without an engine."""

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stem_torchrec.expressions.value_types import GREATEST_INT, LEAST_INT, ValueType
from stem_torchrec.preparation.raw_files.cell_types import EXACT

Values = tuple[pa.Array, NDArray[np.bool_]]
"""The values of a column, null where one is wrong; and which ones are wrong."""

_SHORT_INT = r"^-?[0-9]{1,18}$"
_WHOLE = re.compile(r"[+-]?[0-9]+([.]0*)?")
_FLOAT = r"(?i)^([+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity))$"
_DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = rf"^{_DAY}([ T][0-9]{{2}}:[0-9]{{2}}(:[0-9]{{2}}([.][0-9]{{1,6}})?)?)?$"
_LOOSE_DAY = re.compile(r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})")
_BOOLS = {"true": True, "t": True, "yes": True, "y": True, "1": True} | {
    "false": False, "f": False, "no": False, "n": False, "0": False
}  # fmt: skip


def values_of_texts(texts: pa.Array, wanted: ValueType) -> Values:
    """Texts as values of a type that is no list; null stays null.

    Costs a pass of Arrow for texts in their usual form, and a Python call for each other one, such as `1e3` for an int.

    Example::

        values_of_texts(pa.array(["7", "7.0", "x"]), ValueType.INT)  # [7, 7, null], [False, False, True]
    """
    if wanted == ValueType.TEXT:
        return texts, np.zeros(len(texts), dtype=bool)
    pattern, kind, parse = _READERS[wanted]
    usual = pc.fill_null(pc.match_substring_regex(texts, pattern), True)
    if pc.all(usual, min_count=0).as_py():
        try:
            values = texts.cast(kind)
            return values, np.zeros(len(texts), dtype=bool)
        # Such as the 30th of February.
        except pa.ArrowInvalid:
            pass
    values, wrong = [], np.zeros(len(texts), dtype=bool)
    for i, text in enumerate(texts.to_pylist()):
        try:
            values.append(None if text is None else parse(text))
        except ValueError:
            values.append(None)
            wrong[i] = True
    return pa.array(values, kind), wrong


def _int(text: str) -> int | None:
    if _WHOLE.fullmatch(text):
        number = int(text.partition(".")[0])
        if LEAST_INT <= number <= GREATEST_INT:
            return number
        raise ValueError(text)
    value = _float(text)
    if math.isnan(value):
        return None
    if abs(value) >= EXACT or value != int(value):
        raise ValueError(text)
    return int(value)


def _float(text: str) -> float:
    if not re.match(_FLOAT, text) or text.endswith("\n"):
        raise ValueError(text)
    return float(text)


def _bool(text: str) -> bool:
    if text.lower() not in _BOOLS:
        raise ValueError(text)
    return _BOOLS[text.lower()]


def _date(text: str) -> date:
    match = _LOOSE_DAY.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return date(*map(int, match.groups()))


def _timestamp(text: str) -> datetime:
    match = _LOOSE_DAY.match(text)
    if match is None or text[match.end() : match.end() + 1] not in ("", " ", "T"):
        raise ValueError(text)
    day, rest = date(*map(int, match.groups())).isoformat(), text[match.end() :]
    moment = datetime.fromisoformat(f"{day}T{rest[1:].strip()}" if rest else day)
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


_READERS: Mapping[ValueType, tuple[str, pa.DataType, Callable[[str], Any]]] = {
    ValueType.INT: (_SHORT_INT, pa.int64(), _int),
    ValueType.FLOAT: (_FLOAT, pa.float64(), _float),
    ValueType.BOOL: ("^(true|false)$", pa.bool_(), _bool),
    ValueType.DATE: (f"^{_DAY}$", pa.date32(), _date),
    ValueType.TIMESTAMP: (_TIME, pa.timestamp("us"), _timestamp),
}
"""By type: texts that Arrow reads as the engine does, the type that it makes of them, and a reader of all texts."""
