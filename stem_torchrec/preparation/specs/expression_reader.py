"""Reads expressions of a spec: texts become trees over the columns of the sources, of a type that their place takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stem_torchrec.expressions.expression import Call, Column, Expression, columns_of
from stem_torchrec.expressions.functions import type_of
from stem_torchrec.expressions.sql import parse_expression
from stem_torchrec.expressions.value_types import LISTS, NULL, ValueType
from stem_torchrec.runtime.errors import UserError, nearest


@dataclass(frozen=True)
class Value:
    """What one column of the prepared rows is made of."""

    tree: Expression
    type: ValueType


class ExpressionReader:
    """Reads expressions that may use the columns of the sources and the derived columns before them."""

    def __init__(self, types: Mapping[str, ValueType]) -> None:
        self.types = types
        self._derived: dict[str, Expression] = {}

    def derive(self, name: str, text: str) -> None:
        """Adds a derived column, which replaces a column of its name."""
        self._derived[name] = self.tree(text, f"columns[{name}]")

    def tree(self, text: str, place: str) -> Expression:
        """The tree of a text, over the columns of the sources alone."""
        try:
            tree = parse_expression(text)
            for name in columns_of(tree):
                if name not in self._derived and name not in self.types:
                    known = [*self._derived, *self.types]
                    hint = nearest(name, known) or f"; the sources have {', '.join(self.types)}."
                    raise UserError(f"no column is called {name!r}{hint}")
            tree = substituted(tree, self._derived)
            type_of(tree, self.types)
        except UserError as error:
            raise UserError(f"{place} is {text!r}: {error}") from error
        return tree

    def column(self, name: str, place: str) -> Expression:
        """The tree of a column, of any name."""
        return self.tree('"' + name.replace('"', '""') + '"', place)

    def value(self, text: str, place: str, kinds: Sequence[ValueType], what: str) -> Value:
        """The tree of a text whose type must be one of `kinds`."""
        return self.typed(self.tree(text, place), place, kinds, what, text)

    def typed(self, tree: Expression, place: str, kinds: Sequence[ValueType], what: str, text: str) -> Value:
        """A tree with its type, which must be one of `kinds`; a constant null is of the first of them."""
        kind = type_of(tree, self.types)
        if kind not in (*kinds, NULL):
            raise UserError(f"{place} is {text!r}, which is {kind}, but {what} is one of {', '.join(kinds)}.")
        if kind == NULL and kinds[0] not in LISTS:
            # Engines have a type for every column.
            return Value(Call("cast", (tree,), {"to": str(kinds[0])}), kinds[0])
        return Value(tree, kind)


def substituted(tree: Expression, columns: Mapping[str, Expression]) -> Expression:
    """The tree with other trees in place of columns."""
    if isinstance(tree, Column):
        return columns.get(tree.name, tree)
    if isinstance(tree, Call):
        return Call(tree.function, tuple(substituted(each, columns) for each in tree.arguments), tree.parameters)
    return tree


def from_sql(text: str, **columns: Expression) -> Expression:
    """The tree of a text of this program, with other trees in place of its columns.

    Example::

        from_sql("a + 1", a=Column("price"))  # price + 1
    """
    return substituted(parse_expression(text), columns)
