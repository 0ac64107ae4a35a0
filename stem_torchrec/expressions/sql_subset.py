"""The SQL that expressions are written in: how it is parsed, and which constructs stand for which functions."""

from collections.abc import Mapping
from typing import Any, ClassVar

from sqlglot import exp, parser, tokens
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import ParseError, SqlglotError

from stem_torchrec.runtime.errors import reason_of


class PortableSql(Dialect):
    """SQL in which every function is only a name: sqlglot would read some of them as an engine's."""

    class Tokenizer(tokens.Tokenizer):
        """Knows no joins, so that `cross` is a name too."""

        KEYWORDS: ClassVar[dict[str, Any]] = {k: v for k, v in tokens.Tokenizer.KEYWORDS.items() if k != "CROSS"}

    class Parser(parser.Parser):
        """Knows `cast` and `case`, which have keywords inside."""

        FUNCTIONS: ClassVar[dict[str, Any]] = {}
        NO_PAREN_FUNCTIONS: ClassVar[dict[Any, Any]] = {}
        FUNCTION_PARSERS: ClassVar[dict[str, Any]] = {"CAST": parser.Parser.FUNCTION_PARSERS["CAST"]}
        NO_PAREN_FUNCTION_PARSERS: ClassVar[dict[str, Any]] = {"CASE": parser.Parser.NO_PAREN_FUNCTION_PARSERS["CASE"]}


OPERATORS: Mapping[type[exp.Expr], str] = {
    exp.Add: "add",
    exp.Sub: "subtract",
    exp.Mul: "multiply",
    exp.Div: "divide",
    exp.IntDiv: "quotient",
    exp.Mod: "remainder",
    exp.EQ: "equal",
    exp.NEQ: "not_equal",
    exp.LT: "less",
    exp.LTE: "less_or_equal",
    exp.GT: "greater",
    exp.GTE: "greater_or_equal",
}
JOINED: Mapping[type[exp.Expr], str] = {exp.And: "and", exp.Or: "or", exp.DPipe: "concat"}
"""Operators whose chain is one call."""
TYPES = {
    "INT": "int",
    "BIGINT": "int",
    "DOUBLE": "float",
    "FLOAT": "float",
    "TEXT": "text",
    "VARCHAR": "text",
    "BOOLEAN": "bool",
}
OTHERS: Mapping[type[exp.Expr], tuple[str, str]] = {
    exp.Star: ("`*`", ""),
    exp.Window: ("a window", ""),
    exp.Subquery: ("a query", ""),
    exp.Select: ("a query", ""),
    exp.Exists: ("a query", ""),
    exp.Block: ("a second statement", ""),
    exp.Tuple: ("a list of values", "; cross(a, b) joins values"),
    exp.Bracket: ("an index in brackets", "; element(list, 1) is the first element"),
    exp.Like: ("`like`", "; use starts_with or contains"),
    exp.BitwiseXor: ("`^`", ""),
    exp.Interval: ("an interval", "; days(time) and timestamps are counts"),
    exp.Placeholder: ("a placeholder", ""),
    exp.Parameter: ("a placeholder", ""),
}
"""What SQL has and expressions have not, and what to write instead."""
OWN_SYNTAX = ("and", "or", "not", "in", "case", "is_null", "cast")
"""Functions of the tree that SQL writes as keywords."""


def reason_of_refusal(error: SqlglotError) -> str:
    """The problem that sqlglot names, without the text that it underlines."""
    cause = error.__cause__ if isinstance(error.__cause__, SqlglotError) else error
    if isinstance(cause, ParseError) and cause.errors and cause.errors[0].get("line"):
        first = cause.errors[0]
        if "<class" in first["description"]:
            return f"a part is missing at line {first['line']}, column {first['col']}"
        return f"{first['description']} at line {first['line']}, column {first['col']}".replace(". at", " at")
    return reason_of(cause)


def is_number(node: exp.Expr) -> bool:
    """Whether a part of the text is a number without a sign."""
    return isinstance(node, exp.Literal) and not node.is_string


def written(node: exp.Expr) -> str:
    """A part of the text, written anew."""
    return node.sql(dialect=PortableSql)
