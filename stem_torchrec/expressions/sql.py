"""Expressions in SQL: the documented subset as a tree, and one sentence for everything else."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from stem_torchrec.expressions.expression import (
    MAX_DEPTH,
    Call,
    Column,
    Expression,
    Literal,
    depth_of,
    literal_value,
    shortened,
)
from stem_torchrec.expressions.functions import FUNCTIONS
from stem_torchrec.expressions.sql_subset import (
    JOINED,
    OPERATORS,
    OTHERS,
    OWN_SYNTAX,
    TYPES,
    PortableSql,
    is_number,
    reason_of_refusal,
    written,
)
from stem_torchrec.expressions.time_functions import ZONED
from stem_torchrec.expressions.time_zones import zone_parameters
from stem_torchrec.runtime.errors import UserError, nearest


def parse_expression(text: str) -> Expression:
    """The tree of an expression in SQL.

    Raises UserError that names the text and what it has that is not among the functions.

    Example::

        parse_expression("lower(city) = 'bonn'")
        # Call("equal", (Call("lower", (Column("city"),)), Literal("bonn")))
    """
    try:
        parsed = sqlglot.parse_one(text, dialect=PortableSql, into=exp.Condition)
        tree = _Reader(text).read(parsed)
    except SqlglotError as error:
        raise UserError(f"expression {text!r} is not SQL: {reason_of_refusal(error)}.") from error
    except RecursionError as error:
        raise UserError(f"{shortened(text)} is nested too deep; compute parts of it as columns.") from error
    if depth_of(tree) > MAX_DEPTH:
        raise UserError(f"{shortened(text)} has calls nested deeper than {MAX_DEPTH}; compute parts of it as columns.")
    return tree


class _Reader:
    """Turns what sqlglot parsed into the tree; knows the text for its errors."""

    def __init__(self, text: str) -> None:
        self.text = text

    def read(self, node: exp.Expr) -> Expression:
        """The tree of a part of the text."""
        if type(node) in OPERATORS:
            return Call(OPERATORS[type(node)], (self.read(node.this), self.read(node.expression)))
        if type(node) in JOINED:
            return Call(JOINED[type(node)], tuple(self.read(each) for each in node.flatten()))
        match node:
            case exp.Paren():
                return self.read(node.this)
            case exp.Column():
                return self.column(node)
            case exp.Literal() | exp.Boolean() | exp.Null():
                return Literal(self.constant(node))
            case exp.Neg() if is_number(node.this):
                return Literal(self.constant(node))
            case exp.Neg():
                return Call("negate", (self.read(node.this),))
            case exp.Not():
                return Call("not", (self.read(node.this),))
            case exp.Is(expression=exp.Null()):
                return Call("is_null", (self.read(node.this),))
            case exp.In() | exp.Between() | exp.Case() | exp.Cast() | exp.Anonymous():
                return _COMPOUND[type(node)](self, node)
        raise self.refused(node)

    def refused(self, node: exp.Expr) -> UserError:
        """The error for a construct that is not in the subset."""
        name, instead = OTHERS.get(type(node), (f"`{written(node)}`", ""))
        return UserError(f"expression {self.text!r} has {name}, which is not supported{instead}.")

    def column(self, node: exp.Column) -> Expression:
        """A column by its name alone."""
        if len(node.parts) != 1 or not isinstance(node.this, exp.Identifier):
            raise self.refused(node)
        return Column(node.this.name)

    def constant(self, node: exp.Expr) -> bool | int | float | str | None:
        """The value of a literal, with its sign."""
        match node:
            case exp.Null():
                return None
            case exp.Boolean():
                return bool(node.this)
            case exp.Neg() if is_number(node.this):
                return self.number("-" + node.this.name)
            case exp.Literal():
                return node.name if node.is_string else self.number(node.name)
        raise UserError(f"expression {self.text!r} has `{written(node)}` where only a constant may stand.")

    def number(self, digits: str) -> int | float:
        """A number that 64 bits hold."""
        try:
            value: int | float = int(digits)
        except ValueError:
            value = float(digits)
        checked = literal_value(value, f"a number in expression {self.text!r}")
        assert isinstance(checked, int | float)
        return checked

    def is_one_of(self, node: exp.In) -> Expression:
        """`a in (1, 2)`."""
        if node.args.get("query") or node.args.get("unnest") or node.args.get("field") or not node.expressions:
            raise self.refused(node)
        constants = [self.constant(each) for each in node.expressions]
        if None in constants:
            raise UserError(f"expression {self.text!r} has null in a list, which equals nothing; use `is null`.")
        return Call("in", (self.read(node.this), *map(Literal, constants)))

    def between(self, node: exp.Between) -> Expression:
        """`a between 1 and 2` as two comparisons."""
        value, low, high = (self.read(node.args[part]) for part in ("this", "low", "high"))
        if node.args.get("symmetric"):
            raise self.refused(node)
        return Call("and", (Call("greater_or_equal", (value, low)), Call("less_or_equal", (value, high))))

    def case(self, node: exp.Case) -> Expression:
        """`case when a then b else c end`, and `case a when 1 then b else c end`."""
        parts: list[Expression] = []
        for branch in node.args["ifs"]:
            condition = self.read(branch.this)
            if node.this is not None:
                condition = Call("equal", (self.read(node.this), condition))
            parts += [condition, self.read(branch.args["true"])]
        default = node.args.get("default")
        return Call("case", (*parts, self.read(default) if default is not None else Literal(None)))

    def cast(self, node: exp.Cast) -> Expression:
        """`cast(a as int)`, and `date '2022-05-03'`, which is a cast too."""
        target = node.args["to"]
        name = target.this.name if isinstance(target.this, exp.DType) else str(target.this)
        if name == "DATE" and not target.expressions:
            return Call("to_date", (self.read(node.this),))
        if name not in TYPES or target.expressions:
            raise UserError(
                f"expression {self.text!r} casts to {written(target)}, but must cast to int, bigint, float, double,"
                " text, boolean or date."
            )
        return Call("cast", (self.read(node.this),), {"to": TYPES[name]})

    def function(self, node: exp.Anonymous) -> Expression:
        """A function by its name in any case: arguments first, and its parameters as constants behind them."""
        name = str(node.this).lower()
        given: Sequence[exp.Expr] = node.expressions
        if name in ("if", "to_date_days"):
            return self.shorthand(name, [self.read(each) for each in given])
        known = [each for each, function in FUNCTIONS.items() if not function.fitted and each not in OWN_SYNTAX]
        if name not in known:
            close = nearest(name, [*known, "if", "to_date_days"])
            raise UserError(f"expression {self.text!r} calls {name!r}, which is no function{close or '.'}")
        if name == "in_zone" or (name in ZONED and len(given) == 2):
            return self.zoned(name, given)
        names = list(FUNCTIONS[name].parameters)
        if len(given) < len(names) + 1:
            usage = FUNCTIONS[name].usage
            raise UserError(f"expression {self.text!r} gives {name} {len(given)} arguments; it is written {usage}.")
        split = len(given) - len(names)
        constants = {each: self.parameter(value) for each, value in zip(names, given[split:], strict=True)}
        return Call(name, tuple(self.read(each) for each in given[:split]), constants)

    def shorthand(self, name: str, arguments: Sequence[Expression]) -> Expression:
        """Functions that stand for others."""
        if len(arguments) != {"if": 3, "to_date_days": 1}[name]:
            usage = {"if": "if(a, b, c)", "to_date_days": "to_date_days(text)"}[name]
            raise UserError(f"expression {self.text!r} gives {name} {len(arguments)} arguments; it is written {usage}.")
        if name == "if":
            return Call("case", tuple(arguments))
        return Call("days", (Call("to_date", tuple(arguments)),))

    def parameter(self, node: exp.Expr) -> bool | int | float | str:
        """A constant that is not null."""
        value = self.constant(node)
        if value is None:
            raise UserError(f"expression {self.text!r} has null where only a constant may stand.")
        return value

    def zoned(self, name: str, given: Sequence[exp.Expr]) -> Expression:
        """A function of the local time in a zone."""
        if len(given) != 2:
            usage = FUNCTIONS["in_zone"].usage
            raise UserError(f"expression {self.text!r} gives in_zone {len(given)} arguments; it is written {usage}.")
        zone = self.parameter(given[1])
        try:
            local = Call("in_zone", (self.read(given[0]),), zone_parameters(str(zone)))
        except UserError as error:
            raise UserError(f"expression {self.text!r}: {error}") from error
        return local if name == "in_zone" else Call(name, (local,))


_COMPOUND: Mapping[type[exp.Expr], Callable[[_Reader, Any], Expression]] = {
    exp.In: _Reader.is_one_of,
    exp.Between: _Reader.between,
    exp.Case: _Reader.case,
    exp.Cast: _Reader.cast,
    exp.Anonymous: _Reader.function,
}
