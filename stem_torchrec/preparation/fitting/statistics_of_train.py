"""Exact statistics of a column, by counting its values: any engine gives the same."""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from operator import or_

import ibis
import ibis.expr.types as ir

from stem_torchrec.preparation.engines.engine import Engine

_DIGITS = 12
"""Significant digits of a mean: the last ones depend on the order in which an engine adds."""


def count_values(values: ir.Table, column: str) -> ir.Table:
    """How often each value occurs: columns `value` and `count`; of lists the values in them; nulls are left out."""
    value = values[column]
    table = values.select(value=value.unnest() if value.type().is_array() else value)
    table = table.filter(table["value"].notnull())
    return table.group_by("value").aggregate(count=table.count())


def quantiles(engine: Engine, values: ir.Table, column: str, parts: int) -> list[float]:
    """`parts` + 1 values of a column, from its least to its greatest, with equally many rows between neighbours.

    The i-th is the value at position floor(i * (n - 1) / parts) of the n values in order, which is what NumPy calls the
    `lower` quantile. An empty list for a column without values.

    Example::

        # values 1, 2, 3, 10
        quantiles(engine, values, "price", 3)  # [1, 2, 3, 10]
    """
    spans = _spans(values, column)
    last = _rows(engine, values, column) - 1
    if last < 0:
        return []
    # The first position that is at or behind the span's start: the span has it unless it ends before.
    part = _divided(spans["start"] * parts + max(last - 1, 0), max(last, 1))
    inside = _divided(part * last, parts) < spans["end"]
    return _at(engine.rows(spans.filter(inside).order_by("value")), [i * last // parts for i in range(parts + 1)])


def quantiles_at(engine: Engine, values: ir.Table, column: str, shares: Sequence[float]) -> list[float]:
    """The values at a few shares of a column, each the `lower` quantile; an empty list for a column without values."""
    last = _rows(engine, values, column) - 1
    if last < 0:
        return []
    spans, positions = _spans(values, column), [int(share * last) for share in shares]
    inside = reduce(or_, [(spans["start"] <= each) & (spans["end"] > each) for each in positions])
    return _at(engine.rows(spans.filter(inside).order_by("value")), positions)


def mean_and_deviation(engine: Engine, values: ir.Table, column: str) -> tuple[float, float]:
    """Mean and standard deviation of the values that are not null; 0 and 1 for a column without two different ones."""
    value = values[column].cast("float64")
    [(mean, deviation)] = engine.rows(values.aggregate(mean=value.mean(), deviation=value.std(how="pop")))
    mean, deviation = (float(f"{each or 0.0:.{_DIGITS}g}") for each in (mean, deviation))
    return mean, deviation or 1.0


def _spans(values: ir.Table, column: str) -> ir.Table:
    """For each value, the positions of its rows among all rows in order: from `start` up to but without `end`."""
    counts = count_values(values, column)
    counts = counts.mutate(end=counts["count"].sum().over(ibis.cumulative_window(order_by="value")))
    return counts.mutate(start=counts["end"] - counts["count"]).select("value", "start", "end")


def _rows(engine: Engine, values: ir.Table, column: str) -> int:
    [(rows,)] = engine.rows(values.aggregate(rows=values[column].count()))
    return int(rows)


def _divided(number: ir.Value, divisor: int) -> ir.Value:
    """The whole part of a division; exact below 2^53."""
    return (number / divisor).floor().cast("int64")


def _at(spans: Sequence[tuple[float, int, int]], positions: Sequence[int]) -> list[float]:
    return [next(value for value, start, end in spans if start <= position < end) for position in positions]


def rising(edges: Sequence[float]) -> list[float]:
    """The edges in order, each once."""
    ordered = sorted(edges)
    return [*ordered[:1], *(b for a, b in pairwise(ordered) if b != a)]
