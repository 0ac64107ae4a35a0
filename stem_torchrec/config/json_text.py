"""JSON that people and runs write, to Python values: the one strict reader."""

import json
import math
import reprlib
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic_core import from_json

from stem_torchrec.runtime.errors import reason_of

NumberT = TypeVar("NumberT", int, float)


def parse_json(text: str | bytes) -> Any:
    """The value that JSON text, or its UTF-8 bytes, stands for.

    Raises ValueError with the line and column where the text is not JSON, ends early, has NaN or infinity, or is nested
    deeper than 200 levels; with the number that no float can hold; and with the key that an object has twice.

    Example::

        parse_json('{"ranks": [0, 1]}')  # {"ranks": [0, 1]}
        parse_json('{"ranks": [0, 1]')  # ValueError: not whole JSON: EOF while parsing an object at line 1 column 16
    """
    try:
        # Windows writes a byte order mark before UTF-8.
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        # This reader knows the place of each error and limits the depth; the other one sees keys that stand twice.
        from_json(text.encode(), allow_inf_nan=False)
    except UnicodeError as error:
        raise ValueError(f"not UTF-8 text: {reason_of(error)}") from error
    except ValueError as error:
        raise ValueError(f"not whole JSON: {reason_of(error)}") from error
    return json.loads(text, object_pairs_hook=_unique, parse_float=_finite(float), parse_int=_finite(int))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {reprlib.repr(key)} stands twice in {reprlib.repr(content)}")
        content[key] = value
    return content


def _finite(kind: Callable[[str], NumberT]) -> Callable[[str], NumberT]:
    """Reads a number that a float can hold."""

    def read(digits: str) -> NumberT:
        if math.isinf(float(digits)):
            raise ValueError(f"the number {reprlib.repr(digits)[1:-1]} is too large")
        return kind(digits)

    return read
