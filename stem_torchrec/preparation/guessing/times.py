"""Columns that are times, and the split of a log by one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import ibis.expr.types as ir

from stem_torchrec.expressions.expression import Column
from stem_torchrec.expressions.relational import to_ibis
from stem_torchrec.expressions.value_types import ValueType
from stem_torchrec.preparation.engines.engine import Engine
from stem_torchrec.preparation.guessing.column_names import names_time, time_rank, words_of
from stem_torchrec.preparation.guessing.facts import Facts, share

_T = ValueType
_VALID = 0.1
"""Share of the rows that valid should have."""
_LEAST_PARTS = 10
"""Days, hours, minutes or seconds of which a log must have so many to be cut between them."""
_FROM, _TO = 300_000_000, 5_000_000_000
"""Seconds since 1970, from 1979 to 2128."""
_UNITS = {"s": 1, "ms": 1000, "us": 1_000_000}
_STEPS = {"days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}


@dataclass(frozen=True)
class TimeColumn:
    """A column of times or days."""

    name: str
    unit: str
    """`s`, `ms` or `us` since 1970; `timestamp`, `date`, or `number` for a day such as 20220503."""

    @property
    def is_day(self) -> bool:
        """Whether the hour is unknown."""
        return self.unit in ("date", "number")

    def moment(self, column: str) -> str:
        """The expression for the timestamp, given that of the column."""
        return f"from_unix_{self.unit}({column})" if self.unit in _UNITS else column


@dataclass(frozen=True)
class TimeBounds:
    """Where train and valid end, as the spec has them."""

    column: TimeColumn
    train_until: int | str
    valid_until: int | str
    days: int
    comment: str


def time_column(facts: Facts) -> TimeColumn | None:
    """The time that a column is, if it is one: timestamps, dates, and whole numbers that read as times.

    Example::

        time_column(facts_of_time_ms)  # TimeColumn("time_ms", "ms")
    """
    if facts.type in (_T.TIMESTAMP, _T.DATE):
        return TimeColumn(facts.name, str(facts.type))
    if facts.type != _T.INT or not facts.values or not (names_time(facts.name) or words_of(facts.name)[:1] == ["col"]):
        return None
    if _is_day(facts.least) and _is_day(facts.greatest):
        return TimeColumn(facts.name, "number")
    for unit, factor in _UNITS.items():
        if _FROM * factor <= facts.least <= facts.greatest <= _TO * factor and facts.distinct >= _LEAST_PARTS:
            return TimeColumn(facts.name, unit)
    return None


def _is_day(number: int) -> bool:
    year, month, day = number // 10_000, number // 100 % 100, number % 100
    return 1970 <= year <= 2100 and 1 <= month <= 12 and 1 <= day <= 31


def time_bounds(
    engine: Engine, rows: ir.Table, types: Mapping[str, ValueType], columns: Sequence[TimeColumn]
) -> TimeBounds | None:
    """The split by the first of some columns that all rows have and that has enough different values.

    Args:
        engine: counts.
        rows: all rows of the log.
        types: of its columns.
        columns: the candidates; days are tried first, as a day is what people leave out, and times of something else
            than the row last.
    """
    for column in sorted(columns, key=lambda each: (time_rank(each.name), not each.is_day)):
        value = to_ibis(Column(column.name), {column.name: rows[column.name]}, types, engine="duckdb")
        bounds = _by_day(engine, rows, value, column) if column.is_day else _by_step(engine, rows, value, column)
        if bounds is not None:
            return bounds
    return None


def _counts(engine: Engine, rows: ir.Table, value: ir.Value) -> list[tuple[int, int]]:
    """How many rows each value has, in order; an empty list if some row has none."""
    table = rows.select(value=value)
    counted: list[tuple[Any, int]] = engine.rows(table.group_by("value").aggregate(rows=table.count()))
    return [] if any(each is None for each, _ in counted) else sorted((int(each), rows) for each, rows in counted)


def _cut(counts: Sequence[tuple[int, int]]) -> tuple[int, float]:
    """The position behind which a tenth of the rows lies, as well as whole values allow, and the share that lies."""
    total, behind, best = sum(rows for _, rows in counts), 0, (len(counts) - 1, 1.0)
    for i in range(len(counts) - 1, 0, -1):
        behind += counts[i][1]
        if abs(behind / total - _VALID) < abs(best[1] - _VALID):
            best = (i, behind / total)
    return best


def _by_day(engine: Engine, rows: ir.Table, value: ir.Value, column: TimeColumn) -> TimeBounds | None:
    counts = _counts(engine, rows, value)
    if len(counts) < 3:
        return None
    cut, part = _cut(counts)
    if not 0.02 <= part <= 0.5:
        return None
    train, valid = (_day_text(counts[i][0], column) for i in (cut - 1, -1))
    comment = _comment(len(counts) - cut, len(counts), "days", part)
    return TimeBounds(column, train, valid, len(counts), comment)


def _day_text(value: int, column: TimeColumn) -> int | str:
    return value if column.unit == "number" else str((datetime(1970, 1, 1) + timedelta(days=value)).date())


def _by_step(engine: Engine, rows: ir.Table, value: ir.Value, column: TimeColumn) -> TimeBounds | None:
    factor, days = _UNITS.get(column.unit, 1_000_000), 0
    for name, seconds in _STEPS.items():
        size = seconds * factor
        counts = _counts(engine, rows, (value / size).floor().cast("int64"))
        days = days or len(counts)
        if not counts:
            return None
        cut, part = _cut(counts)
        if len(counts) >= _LEAST_PARTS and 0.02 <= part <= 0.3:
            train, valid = ((counts[i][0] + 1) * size - 1 for i in (cut - 1, -1))
            comment = _comment(len(counts) - cut, len(counts), name, part)
            if column.unit == "timestamp":
                return TimeBounds(column, _moment_text(train), _moment_text(valid), days, comment)
            ends = _moment_text((train + 1) * 1_000_000 // factor - 1)
            return TimeBounds(column, train, valid, days, f"{comment}; train ends {ends[:19]} UTC")
    return None


def _moment_text(microseconds: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)).strftime("%Y-%m-%d %H:%M:%S.%f")


def _comment(valid: int, total: int, unit: str, part: float) -> str:
    return f"the last {valid} of {total:,} {unit}, {share(part)} of the rows, are valid; later rows become test"
