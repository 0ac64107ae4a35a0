"""`cast(a as type)`: only what has exactly one meaning, with null for what is no value of the type.

Engines read '1.5' as the int 2, as 1, or not at all, so a pattern decides before they read a text.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.expressions import engine_functions
from stem_torchrec.expressions.arrow_arrays import finite, where
from stem_torchrec.expressions.exact_integers import of_floats
from stem_torchrec.expressions.function import Function, ParameterKind, Resolved, TypeMismatch, words
from stem_torchrec.expressions.value_types import BOOL, FLOAT, GREATEST_INT, INT, LEAST_INT, NULL, TEXT, ValueType

INT_PATTERN = r"^-?[0-9]+\z"
FLOAT_PATTERN = r"^-?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]{1,3})?\z"
# `$` would also match before a line end in Java.
TRUE, FALSE = ("true", "1"), ("false", "0")
_TARGETS = (BOOL, INT, FLOAT, TEXT)


def int_of_text(text: ibis.Value) -> ibis.Value:
    """The ints that texts of an engine write; null for other texts and beyond 64 bits."""
    return ibis.cases((text.re_search(INT_PATTERN), text.try_cast("int64")), else_=ibis.null("int64"))


def float_of_text(text: ibis.Value) -> ibis.Value:
    """The floats that texts of an engine write; null for other texts, infinite beyond 64 bits."""
    return ibis.cases((text.re_search(FLOAT_PATTERN), text.try_cast("float64")), else_=ibis.null("float64"))


def text_to_int(text: pa.Array) -> pa.Array:
    """The ints that texts write; null for other texts and beyond 64 bits."""
    digits = where(pc.match_substring_regex(text, INT_PATTERN), text)
    try:
        return pc.cast(digits, pa.int64())
    except pa.ArrowInvalid:
        # Numbers beyond 64 bits: compared as texts of equal length.
        negative = pc.starts_with(digits, "-")
        size = pc.ascii_ltrim(pc.ascii_ltrim(digits, "-"), "0")
        limit = pc.if_else(negative, str(-LEAST_INT), str(GREATEST_INT))
        padded = pc.if_else(pc.greater(pc.binary_length(size), 19), "X", pc.ascii_lpad(size, 19, padding="0"))
        fits = pc.and_(pc.not_equal(padded, "X"), pc.less_equal(padded, limit))
        return pc.cast(where(fits, digits), pa.int64())


def text_to_float(text: pa.Array) -> pa.Array:
    """The floats that texts write; null for other texts, infinite beyond 64 bits."""
    return pc.cast(where(pc.match_substring_regex(text, FLOAT_PATTERN), text), pa.float64())


def finite_floats(text: pa.Array) -> pa.Array:
    """The floats that texts write; null for other texts and beyond 64 bits."""
    return finite(text_to_float(text))


def int_to_text(values: pa.Array) -> pa.Array:
    """Decimal digits, with a minus in front of negative ints."""
    return pc.cast(values, pa.string())


def _bool_of_text(text: ibis.Value) -> ibis.Value:
    word = text.translate("TRUEFALS", "truefals")
    return ibis.cases((word.isin(TRUE), True), (word.isin(FALSE), False), else_=ibis.null("boolean"))


def _text_to_bool(text: pa.Array) -> pa.Array:
    word = pc.ascii_lower(text)
    true, false = (pc.is_in(word, pa.array(words)) for words in (TRUE, FALSE))
    return where(pc.or_(true, false), true)


def _int_of_float(value: ibis.Value) -> ibis.Value:
    limit = engine_functions.constant(-float(LEAST_INT))
    # Engines round or cut off what is not whole, so only an int that is the float again counts.
    whole = value.try_cast("int64")
    fits = (value >= -limit) & (value < limit) & (whole.cast("float64") == value)
    return ibis.cases((fits, whole), else_=ibis.null("int64"))


def _float_to_int(values: pa.Array) -> pa.Array:
    return of_floats(where(pc.equal(values, pc.floor(values)), values))


def _int_to_float(values: pa.Array) -> pa.Array:
    # Arrow's own cast refuses ints that a float rounds.
    return pc.cast(values, pa.float64(), safe=False)


def _same(value: Any) -> Any:
    return value


def _bool_text(value: ibis.Value) -> ibis.Value:
    return ibis.cases((value, "true"), (~value, "false"), else_=ibis.null("string"))


_Cast = tuple[Callable[[ibis.Value], ibis.Value], Callable[[pa.Array], pa.Array]]
CASTS: dict[tuple[ValueType, ValueType], _Cast] = {
    (BOOL, INT): (lambda a: a.cast("int64"), lambda a: pc.cast(a, pa.int64())),
    (BOOL, FLOAT): (lambda a: a.cast("int64").cast("float64"), lambda a: pc.cast(pc.cast(a, pa.int64()), pa.float64())),
    (BOOL, TEXT): (_bool_text, lambda a: pc.if_else(a, "true", "false")),
    (INT, FLOAT): (lambda a: a.cast("float64"), _int_to_float),
    (INT, TEXT): (lambda a: a.cast("string"), int_to_text),
    (INT, BOOL): (lambda a: a != 0, lambda a: pc.not_equal(a, 0)),
    (FLOAT, INT): (_int_of_float, _float_to_int),
    (TEXT, INT): (int_of_text, text_to_int),
    (TEXT, FLOAT): (float_of_text, text_to_float),
    (TEXT, BOOL): (_bool_of_text, _text_to_bool),
}
"""From one type to another: what an engine computes and what Arrow computes."""


def _cast_signature(kinds: Sequence[ValueType], parameters: Mapping[str, Any]) -> Resolved:
    target = ValueType(parameters["to"])
    if len(kinds) != 1:
        raise TypeMismatch(-1, "1 argument")
    kind = target if kinds[0] == NULL else kinds[0]
    if kind != target and (kind, target) not in CASTS:
        raise TypeMismatch(0, words([each for each in _TARGETS if each == target or (each, target) in CASTS]))
    return Resolved((kind,), target)


def _kind_of_ibis(value: ibis.Value) -> ValueType:
    kind = value.type()
    return BOOL if kind.is_boolean() else INT if kind.is_integer() else FLOAT if kind.is_floating() else TEXT


def _cast_in_engine(_: str, value: ibis.Value, to: str) -> ibis.Value:
    kind, target = _kind_of_ibis(value), ValueType(to)
    return value if kind == target else CASTS[kind, target][0](value)


def _cast_in_arrow(values: pa.Array, to: str) -> pa.Array:
    kinds = {pa.bool_(): BOOL, pa.int64(): INT, pa.float64(): FLOAT, pa.string(): TEXT}
    kind, target = kinds[values.type], ValueType(to)
    with np.errstate(all="ignore"):
        return values if kind == target else CASTS[kind, target][1](values)


CAST_FUNCTIONS = (
    Function(
        "cast",
        "cast(a as int)",
        "To int, float, text or boolean: a text that does not write such a value is null, and so is a float that is not"
        " whole as an int; a float has no text.",
        _cast_signature,
        _cast_in_engine,
        _cast_in_arrow,
        parameters={"to": ParameterKind(words(_TARGETS), lambda value: value in _TARGETS)},
        unbounded=True,
    ),
)
