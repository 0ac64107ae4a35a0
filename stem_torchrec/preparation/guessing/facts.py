"""Facts about the columns of a sample: values, cardinality, missing values, and lists that a text holds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ibis.expr.types as ir

from stem_torchrec.expressions.value_types import LISTS, ValueType
from stem_torchrec.preparation.engines.engine import ROW, Engine

_T = ValueType
NUMBERS = (_T.INT, _T.FLOAT)
_SEPARATORS = ("|", ";", ",", " ", "\x01", "\x02", "\x03", "^", "~")
_LEAST_SHARE = 0.02
"""Share of cells with a separator that makes a column one of lists."""
_BATCH = 20
"""Columns that one query looks at."""


@dataclass(frozen=True)
class Separated:
    """Lists in a text."""

    separator: str
    of_ints: bool
    brackets: bool
    """Whether the text is `[1, 2]`."""


@dataclass(frozen=True)
class Facts:
    """What a sample tells about a column. Of lists, `distinct` counts the lists."""

    name: str
    type: ValueType
    rows: int
    missing: int
    distinct: int
    least: Any = None
    greatest: Any = None
    mean: float = 0.0
    median: float = 0.0
    length: float = 0.0
    """Mean number of characters of a text."""
    rises: bool = False
    """Whether each row has a greater number than the row before."""
    lists: Separated | None = None

    @property
    def values(self) -> int:
        """Rows that have a value."""
        return self.rows - self.missing

    @property
    def is_unique(self) -> bool:
        """Whether each row has a value that no other one has."""
        return self.values > 1 and self.distinct == self.values and not self.missing

    @property
    def is_binary(self) -> bool:
        """Whether the values are 0 and 1, or true and false."""
        if self.type == _T.BOOL:
            return self.distinct == 2
        return self.type in NUMBERS and self.distinct == 2 and (self.least, self.greatest) == (0, 1)

    @property
    def text(self) -> str:
        """The facts in words, as a comment has them.

        Example::

            facts.text  # "9 values, 5.6 % missing"
        """
        words = [f"{self.distinct:,} {'value' if self.distinct == 1 else 'values'}"]
        if self.type in NUMBERS and self.values:
            words[0] += f" from {_number(self.least)} to {_number(self.greatest)}"
        elif self.type == _T.TEXT and 0 < self.distinct <= 2:
            words[0] += f", {' and '.join(repr(each) for each in dict.fromkeys((self.least, self.greatest)))}"
        if self.missing:
            words.append(f"{share(self.missing / self.rows)} missing")
        return ", ".join(words)


def share(part: float) -> str:
    """A share in percent: `5.6 %`."""
    return f"{part:.1%}".replace("%", " %") if part >= 0.001 or not part else "below 0.1 %"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def facts_of(engine: Engine, sample: ir.Table, types: Mapping[str, ValueType]) -> dict[str, Facts]:
    """The facts of each column.

    Args:
        engine: keeps the sample.
        sample: rows in the order of the files, with a column ROW.
        types: of the columns to look at.
    """
    [(rows,)] = engine.rows(sample.aggregate(rows=sample.count()))
    names, facts = list(types), {}
    for start in range(0, len(names), _BATCH):
        for name, numbers in _aggregates(
            engine, sample, {name: types[name] for name in names[start:][:_BATCH]}
        ).items():
            values = int(numbers["values"] or 0)
            lists = _lists_in(numbers, values) if types[name] == _T.TEXT and values else None
            numbers = {key: value for key, value in numbers.items() if key in Facts.__annotations__}
            numbers = {key: value for key, value in numbers.items() if value is not None}
            facts[name] = Facts(
                **{**numbers, "name": name, "type": types[name], "rows": rows, "missing": rows - values, "lists": lists}
            )
    for name, each in facts.items():
        if each.is_unique and each.type == _T.INT:
            steps = sample.mutate(step=sample[name] - sample[name].lag().over(order_by=ROW))
            [(least,)] = engine.rows(steps.aggregate(least=steps["step"].min()))
            facts[name] = replace(each, rises=least is not None and least > 0)
    return facts


def _aggregates(engine: Engine, sample: ir.Table, types: Mapping[str, ValueType]) -> dict[str, dict[str, Any]]:
    """Aggregates of each column by their names, in one query."""
    named: dict[tuple[str, str], ir.Scalar] = {}
    for name, kind in types.items():
        for key, value in _wanted(sample[name], kind).items():
            named[name, key] = value
    [row] = engine.rows(sample.aggregate(**{str(i): value for i, value in enumerate(named.values())}))
    result: dict[str, dict[str, Any]] = {name: {} for name in types}
    for (name, key), value in zip(named, row, strict=True):
        result[name][key] = value
    return result


def _wanted(column: ir.Column, kind: ValueType) -> dict[str, ir.Scalar]:
    wanted = {"values": column.count(), "distinct": column.nunique()}
    if kind in LISTS or kind == _T.BOOL:
        return wanted
    wanted |= {"least": column.min(), "greatest": column.max()}
    if kind in NUMBERS:
        wanted |= {"mean": column.mean(), "median": column.cast("float64").median()}
    if kind == _T.TEXT:
        wanted["length"] = column.length().mean()
        wanted["brackets"] = (column.startswith("[") & column.endswith("]")).sum()
        # Intervals such as `[10,100)` have a comma.
        wanted["some brackets"] = column.re_search(r"[\[\]()]").sum()
        inner = column.replace("[", "").replace("]", "").replace(" ", "")
        wanted["int lists"] = inner.re_search("^(-?[0-9]+)?(,-?[0-9]+)*$").sum()
        for separator in _SEPARATORS:
            wanted[f"with {separator}"] = column.contains(separator).sum()
            # A blank behind a comma or semicolon is that of a sentence.
            wanted[f"sentences {separator}"] = column.contains(f"{separator} ").sum()
            pattern = f"^-?[0-9]+([{separator if separator != '^' else chr(92) + '^'}]-?[0-9]+)*$"
            wanted[f"ints {separator}"] = column.re_search(pattern).sum()
    return wanted


def _lists_in(numbers: Mapping[str, Any], values: int) -> Separated | None:
    """The lists that the texts of a column hold, if they do."""
    if numbers["brackets"] == values:
        return Separated(",", of_ints=numbers["int lists"] == values, brackets=True)
    for separator in _SEPARATORS:
        with_it = numbers[f"with {separator}"]
        if with_it >= max(1, _LEAST_SHARE * values):
            if numbers[f"ints {separator}"] == values:
                return Separated(separator, of_ints=True, brackets=False)
            # Blanks stand between the words of a text.
            is_text = separator == " " or numbers[f"sentences {separator}"] or numbers["some brackets"]
            if not is_text and with_it >= 0.2 * values:
                return Separated(separator, of_ints=False, brackets=False)
    return None
