"""Arithmetic and rounding. What has no value among the 64 bits of its type is null, on all evaluators alike."""

from collections.abc import Callable
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.expressions import engine_functions, exact_integers
from stem_torchrec.expressions.arrow_arrays import where
from stem_torchrec.expressions.function import NUMBERS, ORDERED, Engine, Function, alike, fixed
from stem_torchrec.expressions.value_types import FLOAT, INT, LEAST_INT

_BEYOND_INT = -float(LEAST_INT)
"""The first float above all whole numbers of 64 bits."""


def _arithmetic(name: str, sign: str, ints: Callable[..., Any], floats: Callable[..., Any]) -> Function:
    """Of two numbers: `ints` and `floats` are the kernels."""
    exact: Callable[..., Any] = getattr(engine_functions, name)

    def relational(engine: Engine, a: ibis.Value, b: ibis.Value) -> ibis.Value:
        if a.type().is_integer():
            return exact(engine, a, b)
        return {"+": a + b, "-": a - b, "*": a * b}[sign]

    return Function(
        name,
        f"a {sign} b",
        "Of ints an int, exact, or null if it leaves 64 bits; with a float a float.",
        alike(NUMBERS, 2, 2),
        relational,
        lambda a, b: ints(a, b) if a.type == pa.int64() else floats(a, b),
        unbounded=True,
    )


def _negate_in_engine(engine: Engine, a: ibis.Value) -> ibis.Value:
    return engine_functions.subtract(engine, engine_functions.constant(0), a) if a.type().is_integer() else -a


def _negate_in_arrow(a: pa.Array) -> pa.Array:
    return exact_integers.subtract(pa.repeat(0, len(a)), a) if a.type == pa.int64() else pc.negate(a)


def _whole_in_engine(name: str) -> Callable[..., ibis.Value]:
    """Rounds a float where the result has 64 bits; an int is whole already."""

    def relational(_: Engine, a: ibis.Value) -> ibis.Value:
        if a.type().is_integer():
            return a
        fits = (a >= engine_functions.constant(-_BEYOND_INT)) & (a < engine_functions.constant(_BEYOND_INT))
        return ibis.cases((fits, engine_functions.rounded(name, a)), else_=ibis.null("int64"))

    return relational


def _whole_in_arrow(rounded: Callable[[pa.Array], pa.Array]) -> Callable[[pa.Array], pa.Array]:
    return lambda a: a if a.type == pa.int64() else exact_integers.of_floats(rounded(a))


def _rounding(name: str, summary: str, arrow: Callable[[pa.Array], pa.Array]) -> Function:
    summary = f"{summary}, as an int; null if it leaves 64 bits."
    signature = alike(NUMBERS, 1, 1, result=INT)
    return Function(name, f"{name}(a)", summary, signature, _whole_in_engine(name), _whole_in_arrow(arrow))


def _of_positive(function: Callable[..., Any], least: str) -> Callable[..., Any]:
    """A function of an engine where the float is above 0, or at least 0."""

    def relational(_: Engine, a: ibis.Value) -> ibis.Value:
        return ibis.cases((a > 0 if least == "above" else a >= 0, function(a)), else_=ibis.null("float64"))

    return relational


def _divide_in_arrow(a: pa.Array, b: pa.Array) -> pa.Array:
    return pc.divide(a, where(pc.not_equal(b, 0.0), b))


NUMBER_FUNCTIONS = (
    _arithmetic("add", "+", exact_integers.add, pc.add),
    _arithmetic("subtract", "-", exact_integers.subtract, pc.subtract),
    _arithmetic("multiply", "*", exact_integers.multiply, pc.multiply),
    Function(
        "divide",
        "a / b",
        "Always a float; null if b is 0.",
        fixed(FLOAT, FLOAT, result=FLOAT),
        lambda engine, a, b: a / b.nullif(engine_functions.constant(0.0)),
        _divide_in_arrow,
        unbounded=True,
    ),
    Function(
        "quotient",
        "a div b",
        "The quotient of ints, cut off towards 0 (-7 div 2 is -3); null if b is 0.",
        fixed(INT, INT, result=INT),
        engine_functions.quotient,
        exact_integers.quotient,
    ),
    Function(
        "remainder",
        "a % b",
        "What `div` leaves of ints, with the sign of a (-7 % 2 is -1); null if b is 0.",
        fixed(INT, INT, result=INT),
        lambda engine, a, b: a % b.nullif(0),
        exact_integers.remainder,
    ),
    Function(
        "negate",
        "-a",
        "The number with the other sign.",
        alike(NUMBERS, 1, 1),
        _negate_in_engine,
        _negate_in_arrow,
        unbounded=True,
    ),
    Function(
        "abs",
        "abs(a)",
        "The number without its sign; null for the least int, which has no counterpart.",
        alike(NUMBERS, 1, 1),
        lambda engine, a: ibis.cases((a < 0, _negate_in_engine(engine, a)), else_=a),
        lambda a: pc.if_else(pc.less(a, 0), _negate_in_arrow(a), a),
    ),
    Function(
        "least",
        "least(a, b)",
        "The least of the values that are not null.",
        alike(ORDERED, 2),
        lambda engine, *values: ibis.least(*values),
        pc.min_element_wise,
    ),
    Function(
        "greatest",
        "greatest(a, b)",
        "The greatest of the values that are not null.",
        alike(ORDERED, 2),
        lambda engine, *values: ibis.greatest(*values),
        pc.max_element_wise,
    ),
    Function(
        "ln",
        "ln(a)",
        "The natural logarithm; null at 0 and below.",
        fixed(FLOAT, result=FLOAT),
        _of_positive(lambda a: a.ln(), "above"),
        lambda a: where(pc.greater(a, 0.0), pc.ln(a)),
    ),
    Function(
        "log1p",
        "log1p(a)",
        "ln(1 + a), computed as written; null at -1 and below.",
        fixed(FLOAT, result=FLOAT),
        lambda engine, a: _of_positive(lambda b: b.ln(), "above")(engine, a + engine_functions.constant(1.0)),
        lambda a: where(pc.greater(pc.add(a, 1.0), 0.0), pc.ln(pc.add(a, 1.0))),
    ),
    Function(
        "exp",
        "exp(a)",
        "e to the power of a number; null if that is above all floats.",
        fixed(FLOAT, result=FLOAT),
        lambda engine, a: a.exp(),
        pc.exp,
        unbounded=True,
    ),
    Function(
        "sqrt",
        "sqrt(a)",
        "The square root; null below 0.",
        fixed(FLOAT, result=FLOAT),
        _of_positive(lambda a: a.sqrt(), "at least"),
        lambda a: pc.sqrt(where(pc.greater_equal(a, 0.0), a)),
    ),
    _rounding("floor", "The next whole number below", pc.floor),
    _rounding("ceil", "The next whole number above", pc.ceil),
    _rounding(
        "round",
        "The nearest whole number, of two the one farther from 0",
        lambda a: pc.round(a, round_mode="half_towards_infinity"),
    ),
)
