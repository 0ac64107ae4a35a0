"""Which tables of a model continue which of the model that it starts from: by group, feature and id."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stem_torchrec.config import NewRows
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.starting.carried import Line, States
from stem_torchrec.starting.id_maps import IdMap
from stem_torchrec.starting.model_weights import Match, Matches, ModelWeights, continued_group
from stem_torchrec.tables import table_feature, table_group, table_name

_STARTS = {"initial": "as initialized", "unseen": "as that of unseen values", "mean": "as their mean"}


@dataclass(frozen=True)
class _Ids:
    """The rows of a feature's tables, counted once for all groups."""

    map: IdMap
    carried: int
    """Rows that continue old ones."""
    gone: int
    """Old rows that no row continues."""
    weight_rows: Tensor | None
    """As `IdMap.rows`, but that the weights of new ids may continue those of unseen values."""

    @classmethod
    def count(cls, ids: IdMap, new_rows: NewRows) -> "_Ids":
        rows = ids.rows
        if rows is None:
            carried, gone = min(ids.old_rows, ids.new_rows), max(0, ids.old_rows - ids.new_rows)
        else:
            carried, is_gone = int((rows >= 0).sum()), torch.ones(ids.old_rows, dtype=torch.bool)
            is_gone[rows[rows >= 0]] = False
            gone = int(is_gone.sum())
        if new_rows == "unseen" and ids.unseen is not None and carried < ids.new_rows:
            rows = torch.arange(ids.new_rows) if rows is None else rows
            rows = rows.where((rows >= 0) & (rows < ids.old_rows), ids.unseen)
        return cls(ids, carried, gone, rows)


def match_tables(
    old: ModelWeights,
    new: ModelWeights,
    id_maps: Mapping[str, IdMap],
    *,
    source: str,
    new_rows: NewRows,
    tables_from: str | None,
    states: States,
) -> tuple[Matches, list[Line]]:
    """The tables that continue others, and what becomes of every table, the states of its optimizer included.

    Args:
        old: of the source.
        new: of the run.
        id_maps: by feature; the ids are the same where one is missing.
        source: its name in messages.
        new_rows: what rows of new ids start from.
        tables_from: the old group that the tables of a new group continue, with fresh states; none if None.
        states: of a table that continues the table of its own group.

    Raises UserError for rows that would go although nothing tells which, and an unknown group.
    """
    if tables_from is not None and tables_from not in old.groups:
        known = f"{', '.join(old.groups)}{nearest(tables_from, old.groups)}"
        raise UserError(f"--start.tables-from is {tables_from}, but {source} has only tables of {known}")
    features, old_features = new.columns.sparse, old.columns.sparse
    ids = {
        feature: _Ids.count(_checked(feature, id_maps.get(feature), old, new, source), new_rows)
        for feature in features
        if feature in old_features
    }
    matches, lines = {}, []
    fresh: States = "fresh" if states else ""
    for name, tensor in new.tables.items():
        group, feature = table_group(tensor.table), table_feature(tensor.table)
        old_group = continued_group(
            group,
            old.groups_of_features.get(feature, ()),
            choice=old.choice,
            tasks=old.columns.labels,
            tables_from=tables_from,
        )
        line = Line(f"tables of {feature}", (group,), "fresh", fresh, new_rows=new.sizes[name][0])
        if old_group is None or feature not in ids:
            lines.append(replace(line, details="new feature" if feature not in ids else "new group"))
            continue
        of_old = states if old_group == group else fresh
        old_name = replace(tensor, table=table_name(old_group, feature)).name
        rows = ids[feature]
        matches[name] = Match(
            old_name, old.sizes[old_name], (rows.map.rows, None), (rows.weight_rows, None), of_old == "carried"
        )
        width, old_width = new.sizes[name][1], old.sizes[old_name][1]
        count = rows.map.new_rows - rows.carried
        details = [
            f"as those of {old_group}" if old_group != group else "",
            rows.map.how,
            f"new rows {_STARTS[new_rows if new_rows != 'unseen' or rows.map.unseen is not None else 'initial']}"
            if count
            else "",
            f"{rows.gone:,} old rows dropped" if rows.gone else "",
            f"{width - old_width} new columns" if width > old_width else "",
            f"{old_width - width} columns dropped" if width < old_width else "",
        ]
        lines.append(
            replace(
                line,
                status="grown" if count or width > old_width else "carried",
                states=of_old,
                rows=rows.carried,
                new_rows=count,
                details="; ".join(each for each in details if each),
            )
        )
    for tensor in old.tables.values():
        group, feature = table_group(tensor.table), table_feature(tensor.table)
        if group not in new.groups_of_features.get(feature, ()):
            lines.append(Line(f"tables of {feature}", (group,), "dropped"))
    return matches, lines


def _checked(feature: str, ids: IdMap | None, old: ModelWeights, new: ModelWeights, source: str) -> IdMap:
    """The map of a feature; raises UserError if it would drop rows by their number alone."""
    old_rows, new_rows = old.columns.sparse[feature].num_embeddings, new.columns.sparse[feature].num_embeddings
    ids = ids or IdMap(old_rows, new_rows)
    assert (ids.old_rows, ids.new_rows) == (old_rows, new_rows), f"the map of {feature} is of other tables"
    if ids.rows is None and new_rows < old_rows:
        raise UserError(
            f"the tables of {feature!r} would shrink from {old_rows} rows in {source} to {new_rows}, and nothing tells "
            "which ids are gone; keep the old ids, or start from a run whose log has its vocabularies."
        )
    return ids
