"""The table of all functions, and the check of a call against it."""

from collections.abc import Mapping, Sequence

from stem_torchrec.expressions.casts import CAST_FUNCTIONS
from stem_torchrec.expressions.expression import (
    MAX_DEPTH,
    Call,
    Column,
    Expression,
    Literal,
    depth_of,
    shortened,
    text_of,
)
from stem_torchrec.expressions.fitted_functions import FITTED_FUNCTIONS
from stem_torchrec.expressions.function import Function, Resolved, TypeMismatch
from stem_torchrec.expressions.id_functions import ID_FUNCTIONS
from stem_torchrec.expressions.list_functions import LIST_FUNCTIONS
from stem_torchrec.expressions.logic_functions import LOGIC_FUNCTIONS
from stem_torchrec.expressions.number_functions import NUMBER_FUNCTIONS
from stem_torchrec.expressions.text_functions import TEXT_FUNCTIONS
from stem_torchrec.expressions.time_functions import TIME_FUNCTIONS
from stem_torchrec.expressions.value_types import BOOL, FLOAT, INT, NULL, TEXT, ValueType
from stem_torchrec.runtime.errors import UserError, nearest

KINDS = {
    "Logic": LOGIC_FUNCTIONS,
    "Numbers": NUMBER_FUNCTIONS,
    "Texts": TEXT_FUNCTIONS,
    "Types": CAST_FUNCTIONS,
    "Times": TIME_FUNCTIONS,
    "Lists": LIST_FUNCTIONS,
    "Fitted": FITTED_FUNCTIONS,
    "Ids": ID_FUNCTIONS,
}
"""All functions by heading."""
FUNCTIONS: dict[str, Function] = {function.name: function for kind in KINDS.values() for function in kind}


def functions_page() -> str:
    """The tables of all functions that SQL may have, by heading, in Markdown."""
    lines = []
    for heading, functions in KINDS.items():
        rows = [
            f"| `{each.usage.replace('|', chr(92) + '|')}` | {each.summary} |" for each in functions if not each.fitted
        ]
        lines += [f"### {heading}", "", "| function | value |", "| --- | --- |", *rows, ""] if rows else []
    return "\n".join(lines)


def resolve(call: Call, kinds: Sequence[ValueType]) -> Resolved:
    """The types to which a call brings its arguments, and that of its result.

    Raises UserError for an unknown function, and for arguments or parameters that it does not take.
    """
    function = FUNCTIONS.get(call.function)
    if function is None:
        close = nearest(call.function, list(FUNCTIONS))
        raise UserError(f"expression {text_of(call)}: there is no function {call.function!r}{close or '.'}")
    _check_parameters(function, call)
    try:
        return function.signature(kinds, call.parameters)
    except TypeMismatch as error:
        if error.position < 0:
            problem = f"has {len(kinds)}"
        else:
            argument = text_of(call.arguments[error.position])
            problem = f"its argument {error.position + 1}, {argument}, is {kinds[error.position]}"
        raise UserError(f"expression {text_of(call)}: {function.name} takes {error.wanted}, but {problem}.") from error


def _check_parameters(function: Function, call: Call) -> None:
    for name in function.parameters:
        if name not in call.parameters:
            raise UserError(f"expression {text_of(call)}: {function.name} needs the parameter {name!r}.")
    for name, value in call.parameters.items():
        if name not in function.parameters:
            close = nearest(name, list(function.parameters))
            raise UserError(f"expression {text_of(call)}: {function.name} has no parameter {name!r}{close or '.'}")
        if not function.parameters[name].holds(value):
            wanted = function.parameters[name].words
            raise UserError(f"expression {text_of(call)}: {name} is {shortened(value)}, but must be {wanted}.")


def type_of_literal(literal: Literal) -> ValueType:
    """The type of a constant."""
    kinds = {bool: BOOL, int: INT, float: FLOAT, str: TEXT, type(None): NULL}
    return kinds[type(literal.value)]


def type_of_column(column: Column, types: Mapping[str, ValueType]) -> ValueType:
    """The type of a column; raises UserError if there is none of the name."""
    if column.name not in types:
        raise UserError(f"there is no column {column.name!r}{nearest(column.name, list(types)) or '.'}")
    return types[column.name]


def type_of(tree: Expression, types: Mapping[str, ValueType]) -> ValueType:
    """The type of an expression's values, before anything is computed.

    Raises UserError that names the expression and the argument if a function does not take what it is given.

    Example::

        type_of(parse_expression("price / 2"), {"price": ValueType.INT})  # ValueType.FLOAT
    """
    if depth_of(tree) > MAX_DEPTH:
        raise UserError(f"an expression has calls nested deeper than {MAX_DEPTH}; compute parts of it as columns.")
    return _type_of(tree, types)


def _type_of(tree: Expression, types: Mapping[str, ValueType]) -> ValueType:
    if isinstance(tree, Literal):
        return type_of_literal(tree)
    if isinstance(tree, Column):
        return type_of_column(tree, types)
    return resolve(tree, [_type_of(argument, types) for argument in tree.arguments]).result


def may_be_infinite(tree: Expression) -> bool:
    """Whether a float of this expression may be infinite or NaN, and is to become null where arithmetic ends."""
    return isinstance(tree, Call) and FUNCTIONS[tree.function].unbounded
