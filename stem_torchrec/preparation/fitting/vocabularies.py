"""Vocabularies: the values that have an id, counted in train or taken over from an earlier log.

A value gets its id in the log in which it has occurred often enough in all logs so far. Until then it waits: its count
stands beside the log, and the log that grows from this one goes on with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from stem_torchrec.preparation.engines.engine import Engine, in_order
from stem_torchrec.preparation.fitting.earlier_log import EarlierLog
from stem_torchrec.preparation.fitting.id_spaces import IdSpace
from stem_torchrec.preparation.fitting.statistics_of_train import count_values

COLUMNS = ("value", "id", "count")
"""Columns of a vocabulary's file."""
WAITING_COLUMNS = ("value", "count", "missed")
"""Columns of the file of values without an id; `missed` is how many logs in a row have lacked the value."""


@dataclass(frozen=True)
class Vocabularies:
    """The id spaces with their kept tables, by the feature that they were made for."""

    spaces: Mapping[str, IdSpace]
    tables: Mapping[str, ir.Table]
    sizes: Mapping[str, int]
    """Ids of each space, with 0 and that of a missing value."""
    waiting: Mapping[str, ir.Table]
    """The values without an id; a space lacks them if its ids are those of a log that lacks them."""

    def of(self, feature: str) -> str | None:
        """The space of a feature; None for a feature without a vocabulary."""
        return next((name for name, space in self.spaces.items() if feature in space.features), None)


def keep_vocabularies(
    engine: Engine, spaces: Mapping[str, IdSpace], values: Mapping[str, ir.Table], earlier: EarlierLog | None
) -> Vocabularies:
    """Keeps the ids of all features that have a vocabulary.

    Args:
        engine: keeps them.
        spaces: by the feature that they are made for.
        values: for each feature, a table with its values in train in the column `value`.
        earlier: a log whose ids stay as they are.
    """
    tables, waiting = {}, {}
    for name, space in spaces.items():
        old = earlier if earlier is not None and name in earlier.spaces else None
        if old is None or old.grows:
            counts = [_counts(space, values), *([] if old is None else _of_earlier(engine, old, name))]
            totals = engine.keep(f"counts {name}", _totals(counts))
            rows = engine.keep(f"vocabulary {name}", _numbered(totals, space, _next_id(engine, old, space)))
            tables[name], waiting[name] = rows.filter(rows["id"].notnull()), rows.filter(rows["id"].isnull())
        else:
            tables[name] = engine.keep(f"vocabulary {name}", engine.parquet(old.vocabulary(name)).select(*COLUMNS))
            if (file := old.waiting(name)) is not None:
                waiting[name] = engine.parquet(file)
    return Vocabularies(spaces, tables, _sizes(engine, spaces, tables), waiting)


def _sizes(engine: Engine, spaces: Mapping[str, IdSpace], tables: Mapping[str, ir.Table]) -> dict[str, int]:
    """The ids of each space, by one query."""
    greatest = [table.aggregate(name=ibis.literal(name), greatest=table["id"].max()) for name, table in tables.items()]
    rows = dict(engine.rows(in_order(greatest))) if tables else {}
    return {name: space.first_id if rows[name] is None else int(rows[name]) + 1 for name, space in spaces.items()}


def _counts(space: IdSpace, values: Mapping[str, ir.Table]) -> ir.Table:
    """How often each value occurs in train of this log."""
    counts = in_order([count_values(values[name], "value") for name in space.features])
    return counts.select("value", _NO_ID, "count", missed=ibis.literal(0, "int64"))


def _of_earlier(engine: Engine, earlier: EarlierLog, name: str) -> list[ir.Table]:
    """What an earlier log has counted: values with an id, and those that wait for one."""
    vocabulary = engine.parquet(earlier.vocabulary(name))
    # Earlier versions wrote doubles for features that share ids.
    known = vocabulary.select("value", "id", count=vocabulary["count"].cast("int64"), missed=ibis.literal(0, "int64"))
    if (file := earlier.waiting(name)) is None:
        return [known]
    waiting = engine.parquet(file)
    return [known, waiting.select("value", _NO_ID, "count", missed=waiting["missed"] + 1)]


def _next_id(engine: Engine, earlier: EarlierLog | None, space: IdSpace) -> int:
    """The id of the first new value."""
    if earlier is None:
        return space.first_id
    ids = engine.parquet(earlier.vocabulary(space.name))["id"]
    [(greatest,)] = engine.rows(ids.max().name("greatest").as_table())
    return space.first_id if greatest is None else int(greatest) + 1


def _totals(counts: Sequence[ir.Table]) -> ir.Table:
    """The count of each value in all logs so far, its id if it has one, and how many logs in a row have lacked it."""
    # A group by spills to disk. DuckDB adds int64 to int128, which Parquet lacks, and Ibis leaves out a cast to what it
    # takes for int64; a double is exact below 2^53.
    rows = in_order(counts)
    count = rows["count"].cast("float64").sum().cast("int64")
    return rows.group_by("value").aggregate(id=rows["id"].max(), count=count, missed=rows["missed"].min())


def _numbered(totals: ir.Table, space: IdSpace, next_id: int) -> ir.Table:
    """Gives ids to new values that have occurred often enough, by falling count, then by value; forgets some others."""
    vocabulary = space.vocabulary
    enough = totals["id"].isnull() & (totals["count"] >= vocabulary.min_count)
    # Most values wait, so those are not sorted.
    new = totals.filter(enough)
    position = ibis.row_number().over(order_by=[ibis.desc("count"), ibis.asc("value")])
    new = new.mutate(id=(position + next_id).cast("int64"))
    if vocabulary.most_frequent is not None:
        fits = new["id"] < space.first_id + vocabulary.most_frequent
        new = new.mutate(id=ibis.ifelse(fits, new["id"], ibis.null("int64")))
    columns = ("value", "id", "count", "missed")
    rows = in_order([totals.filter(~enough).select(*columns), new.select(*columns)])
    if vocabulary.forget_after is not None:
        rows = rows.filter(rows["id"].notnull() | (rows["missed"] < vocabulary.forget_after))
    return rows


_NO_ID = ibis.null("int64").name("id")
