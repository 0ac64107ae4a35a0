"""An expression as an Ibis value, which DuckDB and Spark compute."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import ibis
import ibis.expr.operations as ops

from stem_torchrec.expressions import engine_functions
from stem_torchrec.expressions.expression import Call, Column, Expression, Literal, shortened, text_of
from stem_torchrec.expressions.function import Engine
from stem_torchrec.expressions.functions import FUNCTIONS, may_be_infinite, resolve, type_of, type_of_column
from stem_torchrec.expressions.list_functions import finite_in_engine
from stem_torchrec.expressions.time_functions import DAY, years_in_engine
from stem_torchrec.expressions.value_types import (
    DATE,
    FLOAT,
    FLOATS,
    INT,
    LISTS,
    NULL,
    TIMESTAMP,
    ValueType,
    ibis_type,
    may_carry,
    type_of_ibis,
)
from stem_torchrec.runtime.errors import UserError

MAX_SIZE = 200_000
"""Operations of a query for one expression: functions that need an argument twice double it at each level."""


def to_ibis(
    tree: Expression, columns: Mapping[str, ibis.Value], types: Mapping[str, ValueType], *, engine: Engine
) -> ibis.Value:
    """The Ibis value of an expression; a timestamp or date is its number of microseconds or days.

    No row raises an error: what cannot be computed is null.

    Args:
        tree: the expression.
        columns: the columns that it may read, by name.
        types: their types. A column of timestamps or dates may hold those, or ints as this function returns them.
        engine: the one that will compute it. Spark's session has to have the time zone UTC.

    Raises UserError as `type_of` does, and for a column that does not hold values of its type.

    Example::

        table.select(hour=to_ibis(parse_expression("hour(time)"), {"time": table.time}, types, engine="duckdb"))
    """
    type_of(tree, types)
    value, kind = _value(tree, columns, types, engine)
    if kind == FLOAT and may_be_infinite(tree):
        value = finite_in_engine(value)
    size = _written_size(value.op(), {})
    if size > MAX_SIZE:
        raise UserError(
            f"expression {shortened(text_of(tree))} becomes a query of {size} operations, but may have {MAX_SIZE};"
            " compute parts of it as columns."
        )
    return value


def _written_size(node: Any, sizes: dict[Any, int]) -> int:
    """How many operations SQL has for a node, which repeats a shared one wherever it stands."""
    if node not in sizes:
        parts = chain.from_iterable(part if isinstance(part, tuple) else (part,) for part in node.args)
        sizes[node] = 1 + sum(_written_size(part, sizes) for part in parts if isinstance(part, ops.Value))
    return sizes[node]


def _value(
    tree: Expression, columns: Mapping[str, ibis.Value], types: Mapping[str, ValueType], engine: Engine
) -> tuple[ibis.Value, ValueType]:
    if isinstance(tree, Column):
        kind = type_of_column(tree, types)
        return _read(columns[tree.name], kind, tree.name, engine), kind
    if isinstance(tree, Literal):
        return _literal(tree)
    if tree.function == "vocabulary":
        raise UserError(f"expression {text_of(tree)}: an engine joins a vocabulary, only Arrow looks values up in one.")
    return _call(tree, columns, types, engine)


def _call(
    call: Call, columns: Mapping[str, ibis.Value], types: Mapping[str, ValueType], engine: Engine
) -> tuple[ibis.Value, ValueType]:
    function = FUNCTIONS[call.function]
    operands = [_value(argument, columns, types, engine) for argument in call.arguments]
    resolved = resolve(call, [kind for _, kind in operands])
    values = []
    for (value, kind), argument, wanted in zip(operands, call.arguments, resolved.arguments, strict=True):
        if kind == FLOAT and may_be_infinite(argument) and not function.unbounded:
            value = finite_in_engine(value)
        values.append(_brought(value, kind, wanted))
    return function.relational(engine, *values, **call.parameters), resolved.result


def _literal(literal: Literal) -> tuple[ibis.Value, ValueType]:
    match literal.value:
        case None:
            return ibis.null(), NULL
        case bool() as value:
            return ibis.literal(value), ValueType.BOOL
        case str() as value:
            return ibis.literal(value), ValueType.TEXT
        case value:
            return engine_functions.constant(value), INT if isinstance(value, int) else FLOAT


def _brought(value: ibis.Value, kind: ValueType, wanted: ValueType) -> ibis.Value:
    """A value as one of the type that a function wants."""
    if kind == wanted:
        return value
    if kind == NULL:
        return ibis.null(ibis_type(wanted))
    if kind == DATE:
        return value * engine_functions.constant(DAY)
    return value.cast(ibis_type(wanted))


def _read(value: ibis.Value, wanted: ValueType, name: str, engine: Engine) -> ibis.Value:
    """The values of a column: null in place of what its type has not, and lists without nulls."""
    kind = type_of_ibis(value.type(), name)
    if not may_carry(wanted, kind):
        raise UserError(f"column {name!r} holds {kind}, but is declared as {wanted}.")
    if kind == TIMESTAMP:
        value = engine_functions.microseconds(engine, value)
    elif kind == DATE:
        value = value.delta(ibis.date("1970-01-01"), unit="day")
    value = value.cast(ibis_type(wanted))
    if wanted in (TIMESTAMP, DATE):
        return years_in_engine(value, DAY if wanted == TIMESTAMP else 1)
    if wanted == FLOAT:
        return finite_in_engine(value) if kind == FLOAT else value
    if wanted in LISTS:
        value = value.map(finite_in_engine) if wanted == FLOATS else value
        return value.filter(lambda element: element.notnull())
    return value
