"""An expression as a tree that every evaluator reads: columns, literals and calls of functions; and its JSON."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stem_torchrec.expressions.value_types import GREATEST_INT, LEAST_INT
from stem_torchrec.runtime.errors import UserError

MAX_DEPTH = 64
"""Levels of calls in one expression: engines get some operands more than once, so deep ones make long queries."""

Parameter = bool | int | float | str | Sequence[int] | Sequence[float]
"""A constant of a call that is no expression: edges, a separator, a time zone."""


@dataclass(frozen=True)
class Column:
    """The values of a column."""

    name: str


@dataclass(frozen=True)
class Literal:
    """The same value in all rows; None is null."""

    value: bool | int | float | str | None


@dataclass(frozen=True)
class Call:
    """A function of other expressions.

    Example::

        Call("substr", (Column("name"),), {"start": 1, "count": 2})
    """

    function: str
    arguments: tuple["Expression", ...]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


Expression = Column | Literal | Call


def columns_of(tree: Expression) -> list[str]:
    """The columns that an expression reads, each once, in the order in which they stand in it."""
    return list(dict.fromkeys(_column_names(tree)))


def _column_names(tree: Expression) -> Iterator[str]:
    if isinstance(tree, Column):
        yield tree.name
    elif isinstance(tree, Call):
        for argument in tree.arguments:
            yield from _column_names(argument)


def depth_of(tree: Expression) -> int:
    """How many calls stand inside each other."""
    return 1 + max(map(depth_of, tree.arguments), default=0) if isinstance(tree, Call) else 0


def text_of(tree: Expression) -> str:
    """An expression in error messages: calls only, and long lists of constants shortened.

    Example::

        text_of(parse_expression("a + 1"))  # "add(a, 1)"
    """
    if isinstance(tree, Column):
        return tree.name if tree.name.isidentifier() else '"' + tree.name.replace('"', '""') + '"'
    if isinstance(tree, Literal):
        return _constant(tree.value)
    constants = [_constant(value) for value in tree.parameters.values()]
    return f"{tree.function}({', '.join([*map(text_of, tree.arguments), *constants])})"


def _constant(value: Any) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Sequence):
        return f"[{len(value)} values]"
    return repr(value)


def to_json(tree: Expression) -> dict[str, Any]:
    """The tree as values of JSON.

    Example::

        to_json(parse_expression("a + 1"))
        # {"call": "add", "arguments": [{"column": "a"}, {"literal": 1}]}
    """
    if isinstance(tree, Column):
        return {"column": tree.name}
    if isinstance(tree, Literal):
        return {"literal": tree.value}
    content: dict[str, Any] = {"call": tree.function, "arguments": [to_json(each) for each in tree.arguments]}
    if tree.parameters:
        content["parameters"] = {
            name: list(value) if isinstance(value, tuple) else value for name, value in tree.parameters.items()
        }
    return content


def from_json(content: Any, place: str) -> Expression:
    """The tree that values of JSON stand for.

    Args:
        content: what `to_json` returned, as a JSON reader gave it back.
        place: where it stands, for errors, such as `features.age.value`.

    Raises UserError with the place of whatever is no part of an expression. Whether functions exist and take what they
    are given is checked by `type_of`.
    """
    return _read(content, place, 0)


def _read(content: Any, place: str, depth: int) -> Expression:
    if depth > MAX_DEPTH:
        raise UserError(f"{place} is nested deeper than {MAX_DEPTH} calls.")
    if not isinstance(content, dict) or len(kinds := [k for k in ("column", "literal", "call") if k in content]) != 1:
        raise UserError(f"{place} is {shortened(content)}, but must have one of column, literal and call.")
    allowed = {"call", "arguments", "parameters"} if kinds == ["call"] else set(kinds)
    if others := sorted(set(content) - allowed):
        raise UserError(f"{place} has a field {others[0]!r}, which a {kinds[0]} has not.")
    if kinds == ["column"]:
        return Column(_text(content["column"], f"{place}.column"))
    if kinds == ["literal"]:
        return Literal(literal_value(content["literal"], f"{place}.literal"))
    arguments, parameters = content.get("arguments", []), content.get("parameters", {})
    if not isinstance(arguments, list):
        raise UserError(f"{place}.arguments is {shortened(arguments)}, but must be a list.")
    if not isinstance(parameters, dict):
        raise UserError(f"{place}.parameters is {shortened(parameters)}, but must be a mapping.")
    return Call(
        _text(content["call"], f"{place}.call"),
        tuple(_read(each, f"{place}.arguments[{i}]", depth + 1) for i, each in enumerate(arguments)),
        {name: _parameter(value, f"{place}.parameters.{name}") for name, value in parameters.items()},
    )


def _text(content: Any, place: str) -> str:
    if not isinstance(content, str):
        raise UserError(f"{place} is {shortened(content)}, but must be text.")
    return content


def literal_value(value: Any, place: str) -> bool | int | float | str | None:
    """A value that a literal may have; raises UserError for others, and for numbers that no type holds."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int) and LEAST_INT <= value <= GREATEST_INT:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise UserError(f"{place} is {shortened(value)}, but must be text, true, false, null or a number of 64 bits.")


def _parameter(value: Any, place: str) -> Parameter:
    if isinstance(value, list):
        return tuple(_number(each, f"{place}[{i}]") for i, each in enumerate(value))
    constant = literal_value(value, place)
    if constant is None:
        raise UserError(f"{place} is null, but must be text, true, false, a number or a list of numbers.")
    return constant


def _number(value: Any, place: str) -> int | float:
    number = literal_value(value, place)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise UserError(f"{place} is {shortened(value)}, but must be a number.")
    return number


def shortened(value: Any) -> str:
    """A value in an error message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
