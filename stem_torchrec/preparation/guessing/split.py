"""The split of a guessed spec: a column that names it, else the last tenth by time, else at random."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ibis.expr.types as ir

from stem_torchrec.expressions.value_types import ValueType
from stem_torchrec.preparation.engines.engine import Engine
from stem_torchrec.preparation.guessing.column_names import time_rank
from stem_torchrec.preparation.guessing.facts import Facts
from stem_torchrec.preparation.guessing.labels import column_text
from stem_torchrec.preparation.guessing.times import TimeColumn, time_bounds, time_column

_PARTS = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class GuessedSplit:
    """The split as the spec has it."""

    content: dict[str, Any]
    comments: dict[str, str]
    """By field of the way."""
    order: str | None = None
    time: TimeColumn | None = None
    days: int = 0
    """Days of the log by the time; 0 if unknown."""
    column: str | None = None
    """The column by which the log is split."""


def guess_split(engine: Engine, rows: ir.Table, types: Mapping[str, ValueType], facts: Sequence[Facts]) -> GuessedSplit:
    """The split of a log.

    Args:
        engine: counts.
        rows: all rows.
        types: of their columns.
        facts: of the columns that may be used.
    """
    for each in facts:
        parts = _parts(engine, rows, each)
        if parts:
            content: dict[str, Any] = {"column": {"by": column_text(each.name), **parts}}
            return GuessedSplit(content, {"by": "its values name the parts"}, column=each.name)
    times = [time for each in facts if not each.missing and (time := time_column(each)) is not None]
    bounds = time_bounds(engine, rows, types, times)
    if bounds is not None:
        by = column_text(bounds.column.name)
        content = {"time": {"by": by, "train_until": bounds.train_until, "valid_until": bounds.valid_until}}
        # A day has no order of its rows; a time beside it has.
        finer = bounds.column
        if finer.is_day:
            finer = next((time for time in times if not time.is_day and time_rank(time.name) < 2), finer)
        return GuessedSplit(
            content, {"train_until": bounds.comment}, column_text(finer.name), finer, bounds.days, bounds.column.name
        )
    why = "all rows have no time that could be cut" if times else "no column is a time"
    content = {"random": {"seed": 0, "valid": 0.1, "test": 0.1}}
    return GuessedSplit(content, {"seed": f"{why}, so rows are drawn"})


def _parts(engine: Engine, rows: ir.Table, facts: Facts) -> dict[str, list[str]] | None:
    """The values of a column for train, valid and test; None for a column of other values."""
    known = {name: part for part, names in _PARTS.items() for name in names}
    if facts.type != ValueType.TEXT or facts.missing or not 2 <= facts.distinct <= len(_PARTS):
        return None
    values = [value for (value,) in engine.rows(rows.select(part=rows[facts.name]).distinct())]
    parts: dict[str, list[str]] = {part: [] for part in _PARTS}
    for value in values:
        if value is None or value.lower() not in known:
            return None
        parts[known[value.lower()]].append(value)
    # A log needs a valid part.
    if not parts["valid"]:
        parts["valid"], parts["test"] = parts["test"], []
    return {part: sorted(names) for part, names in parts.items() if names} if parts["train"] else None
