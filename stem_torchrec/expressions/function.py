"""What a function of expressions is: its types, what an engine computes and what Arrow computes, in one place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from stem_torchrec.expressions.value_types import (
    BOOL,
    DATE,
    FLOAT,
    FLOATS,
    INT,
    INTS,
    LISTS,
    NULL,
    TEXT,
    TIMESTAMP,
    ValueType,
)

Engine = Literal["duckdb", "spark"]
"""The engines for which Ibis values are built."""

NUMBERS = (INT, FLOAT)
ORDERED = (INT, FLOAT, TEXT, TIMESTAMP, DATE)
SCALARS = (BOOL, *ORDERED)
ANY = (*SCALARS, *LISTS)


class TypeMismatch(ValueError):
    """A function does not take arguments of these types: the position of the first that is wrong, and what it takes."""

    def __init__(self, position: int, wanted: str) -> None:
        super().__init__(wanted)
        self.position, self.wanted = position, wanted


@dataclass(frozen=True)
class Resolved:
    """A call's types: those to which its arguments are brought, and that of its result."""

    arguments: tuple[ValueType, ...]
    result: ValueType


Signature = Callable[[Sequence[ValueType], Mapping[str, Any]], Resolved]
"""From the types of the arguments and the parameters; raises TypeMismatch."""


@dataclass(frozen=True)
class ParameterKind:
    """The constants that a parameter may be."""

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Function:
    """A function of expressions.

    Args:
        name: its name in the tree, which is also its name in SQL.
        usage: how it is written in SQL; for functions that only fitting writes, its arguments and parameters.
        summary: one sentence for the page of all functions.
        signature: checks the types of the arguments.
        relational: from the engine, an Ibis value for each argument, and the parameters by name, to an Ibis value.
        arrow: from an Arrow array for each argument, and the parameters by name, to an Arrow array.
        parameters: constants behind the arguments, in the order in which SQL has them.
        unbounded: the result may be infinite or NaN, and so may the arguments. Such a result becomes null as soon as
            another function or the reader takes it, so that only chains of arithmetic see it.
        fitted: only the fitting of transforms writes it.
    """

    name: str
    usage: str
    summary: str
    signature: Signature
    relational: Callable[..., Any]
    arrow: Callable[..., Any]
    parameters: Mapping[str, ParameterKind] = field(default_factory=dict)
    unbounded: bool = False
    fitted: bool = False


def unified(kinds: Sequence[ValueType]) -> ValueType | None:
    """The one type to which values of several types are brought; None where there is none.

    Example::

        unified([INT, NULL, FLOAT])  # FLOAT
        unified([INT, TEXT])         # None
    """
    wider = {frozenset((INT, FLOAT)): FLOAT, frozenset((DATE, TIMESTAMP)): TIMESTAMP, frozenset((INTS, FLOATS)): FLOATS}
    different = frozenset(kinds) - {NULL}
    if len(different) <= 1:
        return next(iter(different), NULL)
    return wider.get(different)


def takes(kind: ValueType, wanted: Sequence[ValueType]) -> bool:
    """Whether values of a type can be brought to one of the wanted types."""
    return any(unified((kind, each)) == each for each in wanted)


def words(kinds: Sequence[ValueType]) -> str:
    """`int or float`."""
    if set(kinds) == set(ANY):
        return "any value"
    return " or ".join(([", ".join(kinds[:-1])] if len(kinds) > 1 else []) + [kinds[-1]])


def fixed(*wanted: ValueType, result: ValueType) -> Signature:
    """One type for each argument."""

    def signature(kinds: Sequence[ValueType], _: Mapping[str, Any]) -> Resolved:
        _check_count(kinds, len(wanted), len(wanted))
        for position, (kind, each) in enumerate(zip(kinds, wanted, strict=True)):
            if not takes(kind, (each,)):
                raise TypeMismatch(position, each)
        return Resolved(wanted, result)

    return signature


def alike(
    wanted: Sequence[ValueType], least: int, greatest: int | None = None, result: ValueType | None = None
) -> Signature:
    """Some arguments that are brought to one of the wanted types; the result is of that type or of the given one."""

    def signature(kinds: Sequence[ValueType], _: Mapping[str, Any]) -> Resolved:
        _check_count(kinds, least, greatest)
        for position, kind in enumerate(kinds):
            if kind != NULL and kind not in wanted:
                raise TypeMismatch(position, words(wanted))
            if unified(kinds[: position + 1]) is None:
                raise TypeMismatch(position, f"{unified(kinds[:position])}, as the ones before it")
        # Nulls alone may be of any type that the function takes.
        kind = unified((*kinds, NULL)) or NULL
        kind = wanted[0] if kind == NULL else kind
        return Resolved((kind,) * len(kinds), result or kind)

    return signature


def one_of(results: Mapping[ValueType, ValueType]) -> Signature:
    """One argument, whose type decides that of the result."""

    def signature(kinds: Sequence[ValueType], _: Mapping[str, Any]) -> Resolved:
        _check_count(kinds, 1, 1)
        kind = next(iter(results)) if kinds[0] == NULL else kinds[0]
        if kind not in results:
            raise TypeMismatch(0, words(list(results)))
        return Resolved((kind,), results[kind])

    return signature


def _check_count(kinds: Sequence[ValueType], least: int, greatest: int | None) -> None:
    if len(kinds) < least or (greatest is not None and len(kinds) > greatest):
        number = (
            f"at least {least}" if greatest is None else str(least) if least == greatest else f"{least} to {greatest}"
        )
        raise TypeMismatch(-1, f"{number} argument{'s' * (number != '1')}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rises(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    return all(map(_is_number, value)) and all(a <= b for a, b in pairwise(value))


POSITIVE = ParameterKind("a whole number of at least 1", lambda value: _is_whole(value) and value >= 1)
WHOLE = ParameterKind("a whole number", _is_whole)
NOT_NEGATIVE = ParameterKind("a whole number of at least 0", lambda value: _is_whole(value) and value >= 0)
NOT_ZERO = ParameterKind("a whole number other than 0", lambda value: _is_whole(value) and value != 0)
ANY_NUMBER = ParameterKind("a number", _is_number)
POSITIVE_NUMBER = ParameterKind("a number above 0", lambda value: _is_number(value) and value > 0)
ANY_TEXT = ParameterKind("text", lambda value: isinstance(value, str))
FULL_TEXT = ParameterKind("text that is not empty", lambda value: isinstance(value, str) and bool(value))
EDGES = ParameterKind("numbers that do not fall", _rises)
