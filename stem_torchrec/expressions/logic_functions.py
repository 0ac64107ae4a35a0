"""Comparisons, `and`, `or`, `not`, null and choices between values, with the three-valued logic of SQL."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.expressions.arrow_arrays import where
from stem_torchrec.expressions.function import (
    ANY,
    ORDERED,
    SCALARS,
    Function,
    Resolved,
    TypeMismatch,
    alike,
    fixed,
    takes,
    unified,
)
from stem_torchrec.expressions.value_types import BOOL, NULL, ValueType


def _comparison(name: str, sign: str, kernel: Callable[..., Any], relational: Callable[..., Any]) -> Function:
    kinds = SCALARS if name.endswith("equal") and "_or_" not in name else ORDERED
    return Function(
        name,
        f"a {sign} b",
        "Compares numbers, times, texts by code points, or booleans; null if either is null.",
        alike(kinds, 2, 2, result=BOOL),
        lambda engine, a, b: relational(a, b),
        kernel,
    )


def _one_of(values: pa.Array, *constants: pa.Array) -> pa.Array:
    """`in`: null for null, as no constant is null."""
    return reduce(pc.or_kleene, [pc.equal(values, constant) for constant in constants])


def _case_signature(kinds: Sequence[ValueType], _: Mapping[str, Any]) -> Resolved:
    """Conditions and values in turns, and the value of all other rows at the end."""
    if len(kinds) < 3 or len(kinds) % 2 == 0:
        raise TypeMismatch(-1, "conditions and values in turns, and a value for all other rows")
    values = [*range(1, len(kinds) - 1, 2), len(kinds) - 1]
    for position in set(range(len(kinds))) - set(values):
        if not takes(kinds[position], (BOOL,)):
            raise TypeMismatch(position, BOOL)
    for count, position in enumerate(values):
        if unified([kinds[each] for each in values[: count + 1]]) is None:
            before = unified([kinds[each] for each in values[:count]])
            raise TypeMismatch(position, f"{before}, as the values before it")
    kind = unified([kinds[each] for each in values]) or NULL
    kind = BOOL if kind == NULL else kind
    return Resolved(tuple(kind if i in values else BOOL for i in range(len(kinds))), kind)


def _case_in_engine(_: str, *values: ibis.Value) -> ibis.Value:
    return ibis.cases(*zip(values[:-1:2], values[1:-1:2], strict=True), else_=values[-1])


def _case_in_arrow(*values: pa.Array) -> pa.Array:
    conditions = [pc.fill_null(condition, False) for condition in values[:-1:2]]
    names = [str(i) for i in range(len(conditions))]
    return pc.case_when(pc.make_struct(*conditions, field_names=names), *values[1:-1:2], values[-1])


def _fold(combine: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda *values: reduce(combine, values)


LOGIC_FUNCTIONS = (
    _comparison("equal", "=", pc.equal, lambda a, b: a == b),
    _comparison("not_equal", "<>", pc.not_equal, lambda a, b: a != b),
    _comparison("less", "<", pc.less, lambda a, b: a < b),
    _comparison("less_or_equal", "<=", pc.less_equal, lambda a, b: a <= b),
    _comparison("greater", ">", pc.greater, lambda a, b: a > b),
    _comparison("greater_or_equal", ">=", pc.greater_equal, lambda a, b: a >= b),
    Function(
        "and",
        "a and b",
        "False if any is false, otherwise null if any is null.",
        alike((BOOL,), 2),
        lambda engine, *values: reduce(lambda a, b: a & b, values),
        _fold(pc.and_kleene),
    ),
    Function(
        "or",
        "a or b",
        "True if any is true, otherwise null if any is null.",
        alike((BOOL,), 2),
        lambda engine, *values: reduce(lambda a, b: a | b, values),
        _fold(pc.or_kleene),
    ),
    Function(
        "not",
        "not a",
        "Null if the value is null.",
        fixed(BOOL, result=BOOL),
        # ~a becomes NOT a without parentheses, which binds less than what stands around it: NOT a IS NULL.
        lambda engine, a: a == ibis.literal(value=False),
        pc.invert,
    ),
    Function(
        "is_null",
        "a is null, a is not null",
        "Whether a value is missing; NaN and infinite floats are.",
        alike(ANY, 1, 1, result=BOOL),
        lambda engine, a: a.isnull(),
        pc.is_null,
    ),
    Function(
        "in",
        "a in (1, 2), a not in (1, 2)",
        "Whether a value is one of some constants; null for null.",
        alike(SCALARS, 2, result=BOOL),
        lambda engine, a, *constants: a.isin(constants),
        _one_of,
    ),
    Function(
        "case",
        "case when a then b else c end, if(a, b, c)",
        "The value behind the first condition that is true; null without an else.",
        _case_signature,
        _case_in_engine,
        _case_in_arrow,
    ),
    Function(
        "coalesce",
        "coalesce(a, b)",
        "The first value that is not null.",
        alike(ANY, 1),
        lambda engine, *values: ibis.coalesce(*values),
        pc.coalesce,
    ),
    Function(
        "nullif",
        "nullif(a, b)",
        "Null where a equals b, otherwise a.",
        alike(SCALARS, 2, 2),
        lambda engine, a, b: a.nullif(b),
        lambda a, b: where(pc.fill_null(pc.not_equal(a, b), True), a),
    ),
)
