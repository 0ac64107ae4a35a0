"""Functions of texts. Characters are code points of Unicode, and only the letters A to Z have two cases.

Engines do not agree on the case of other letters: Java, ICU and utf8proc have tables of different versions.
"""

import string
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.expressions import engine_functions
from stem_torchrec.expressions.casts import int_to_text
from stem_torchrec.expressions.function import (
    ANY_TEXT,
    FULL_TEXT,
    NOT_NEGATIVE,
    POSITIVE,
    Function,
    Resolved,
    TypeMismatch,
    alike,
    fixed,
)
from stem_torchrec.expressions.value_types import BOOL, INT, NULL, TEXT

_BLANKS = string.whitespace
SEPARATOR = "\x1f"
"""Between the parts of a cross, so that ('a', 'bc') and ('ab', 'c') differ: the unit separator of ASCII."""


def _cross_signature(kinds: Any, _: Any) -> Resolved:
    if len(kinds) < 2:
        raise TypeMismatch(-1, "at least 2 arguments")
    for position, kind in enumerate(kinds):
        if kind not in (TEXT, INT, NULL):
            raise TypeMismatch(position, "text or int")
    return Resolved(tuple(TEXT if kind == NULL else kind for kind in kinds), TEXT)


def _cross_in_engine(_: str, *values: Any) -> Any:
    texts = [value.cast("string") if value.type().is_integer() else value for value in values]
    return reduce(lambda a, b: a + SEPARATOR + b, texts)


def _cross_in_arrow(*values: pa.Array) -> pa.Array:
    texts = [int_to_text(value) if value.type == pa.int64() else value for value in values]
    return pc.binary_join_element_wise(*texts, SEPARATOR)


def _concat_in_arrow(*texts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(*texts, "")


TEXT_FUNCTIONS = (
    Function(
        "lower",
        "lower(text)",
        "With a to z in place of A to Z; other letters stay.",
        fixed(TEXT, result=TEXT),
        lambda engine, text: text.translate(string.ascii_uppercase, string.ascii_lowercase),
        pc.ascii_lower,
    ),
    Function(
        "upper",
        "upper(text)",
        "With A to Z in place of a to z; other letters stay.",
        fixed(TEXT, result=TEXT),
        lambda engine, text: text.translate(string.ascii_lowercase, string.ascii_uppercase),
        pc.ascii_upper,
    ),
    Function(
        "trim",
        "trim(text)",
        "Without spaces, tabs and line ends around it.",
        fixed(TEXT, result=TEXT),
        lambda engine, text: text.strip(),
        lambda text: pc.utf8_trim(text, characters=_BLANKS),
    ),
    Function(
        "length",
        "length(text)",
        "The number of characters.",
        fixed(TEXT, result=INT),
        lambda engine, text: text.length().cast("int64"),
        lambda text: pc.cast(pc.utf8_length(text), pa.int64()),
    ),
    Function(
        "substr",
        "substr(text, 2, 3)",
        "So many characters from the given one on; the first is 1.",
        fixed(TEXT, result=TEXT),
        lambda engine, text, start, count: engine_functions.substring(text, start, count),
        lambda text, start, count: pc.utf8_slice_codeunits(text, start - 1, start - 1 + count),
        parameters={"start": POSITIVE, "count": NOT_NEGATIVE},
    ),
    Function(
        "concat",
        "concat(a, b), a || b",
        "Texts joined to one; null if any is null.",
        alike((TEXT,), 2),
        lambda engine, *texts: reduce(lambda a, b: a + b, texts),
        _concat_in_arrow,
    ),
    Function(
        "cross",
        "cross(a, b)",
        "Texts and ints joined to one text that differs for all combinations; null if any is null.",
        _cross_signature,
        _cross_in_engine,
        _cross_in_arrow,
    ),
    Function(
        "replace",
        "replace(text, 'old', 'new')",
        "With one constant text in place of each occurrence of another, from the left.",
        fixed(TEXT, result=TEXT),
        lambda engine, text, old, new: text.replace(old, new),
        lambda text, old, new: pc.replace_substring(text, old, new),
        parameters={"old": FULL_TEXT, "new": ANY_TEXT},
    ),
    Function(
        "starts_with",
        "starts_with(text, 'start')",
        "Whether a text starts with a constant one.",
        fixed(TEXT, result=BOOL),
        lambda engine, text, start: text.startswith(start),
        lambda text, start: pc.starts_with(text, start),
        parameters={"start": FULL_TEXT},
    ),
    Function(
        "contains",
        "contains(text, 'part')",
        "Whether a constant text stands in a text.",
        fixed(TEXT, result=BOOL),
        lambda engine, text, part: text.contains(part),
        lambda text, part: pc.match_substring(text, part),
        parameters={"part": FULL_TEXT},
    ),
)
