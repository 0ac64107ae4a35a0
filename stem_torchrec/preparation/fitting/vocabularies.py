"""Vocabularies: the values that have an id, counted in train or taken over from an earlier log."""

from collections.abc import Mapping
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from stem_torchrec.preparation.engines.engine import Engine, in_order
from stem_torchrec.preparation.fitting.earlier_log import EarlierLog
from stem_torchrec.preparation.fitting.id_spaces import IdSpace
from stem_torchrec.preparation.fitting.statistics_of_train import count_values

COLUMNS = ("value", "id", "count")
"""Columns of a vocabulary's file."""


@dataclass(frozen=True)
class Vocabularies:
    """The id spaces with their kept tables, by the feature that they were made for."""

    spaces: Mapping[str, IdSpace]
    tables: Mapping[str, ir.Table]
    sizes: Mapping[str, int]
    """Ids of each space, with 0 and that of a missing value."""

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
    tables = {}
    for name, space in spaces.items():
        if earlier is None or name not in earlier.spaces:
            table = _new(space, values)
        elif earlier.grows:
            table = _grown(engine.parquet(earlier.vocabulary(name)), space, values)
        else:
            table = engine.parquet(earlier.vocabulary(name))
        tables[name] = engine.keep(f"vocabulary {name}", table.select(*COLUMNS).order_by("id"))
    return Vocabularies(spaces, tables, _sizes(engine, spaces, tables))


def _sizes(engine: Engine, spaces: Mapping[str, IdSpace], tables: Mapping[str, ir.Table]) -> dict[str, int]:
    """The ids of each space, by one query."""
    greatest = [table.aggregate(name=ibis.literal(name), greatest=table["id"].max()) for name, table in tables.items()]
    rows = dict(engine.rows(in_order(greatest))) if tables else {}
    return {name: space.first_id if rows[name] is None else int(rows[name]) + 1 for name, space in spaces.items()}


def _new(space: IdSpace, values: Mapping[str, ir.Table]) -> ir.Table:
    """The values of train that occur often enough, numbered by falling count, then by value."""
    counts = _counts(space, values)
    counts = counts.filter(counts["count"] >= space.vocabulary.min_count)
    if space.vocabulary.most_frequent is not None:
        counts = counts.order_by(_BY_COUNT).limit(space.vocabulary.most_frequent)
    return _numbered(counts, space.first_id)


def _grown(old: ir.Table, space: IdSpace, values: Mapping[str, ir.Table]) -> ir.Table:
    """The old values with their ids, and the new ones behind them; counts are those of all logs so far."""
    old = old.select(old_value=old["value"], old_id=old["id"], old_count=old["count"])
    counts = _counts(space, values)
    both = old.outer_join(counts, old["old_value"] == counts["value"])
    known = both.filter(both["old_id"].notnull())
    known = known.select(
        value=known["old_value"], id=known["old_id"], count=known["old_count"] + known["count"].fill_null(0)
    )
    new = both.filter(both["old_id"].isnull()).select("value", "count")
    new = new.filter(new["count"] >= space.vocabulary.min_count)
    next_id = old.aggregate(next_id=old["old_id"].max().fill_null(space.first_id - 1) + 1)
    numbered = _numbered(new, 0).cross_join(next_id)
    numbered = numbered.select("value", id=numbered["id"] + numbered["next_id"], count="count")
    return in_order([known, numbered])


def _counts(space: IdSpace, values: Mapping[str, ir.Table]) -> ir.Table:
    counts = in_order([count_values(values[name], "value") for name in space.features])
    return counts.group_by("value").aggregate(count=counts["count"].sum()) if len(space.features) > 1 else counts


_BY_COUNT = [ibis.desc("count"), ibis.asc("value")]


def _numbered(counts: ir.Table, first: int) -> ir.Table:
    position = ibis.row_number().over(order_by=_BY_COUNT)
    return counts.mutate(id=(position + first).cast("int64")).select(*COLUMNS)
