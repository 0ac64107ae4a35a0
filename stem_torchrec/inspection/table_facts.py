"""What the tables of a run hold: how many directions, how long rows are, which have moved, and which the most."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stem_torchrec.comparison.diagnostics import information_abundance, linear_cka

_BLOCK_ROWS = 65_536
_COLLAPSED = 1.05
"""Information abundance below which a table is called a line."""
_SMALL = 0.02
"""Share of an equal part of a group's input below which a table is called small."""


@dataclass(frozen=True)
class Norms:
    """Lengths of rows: their mean and quantiles."""

    mean: float
    p10: float
    median: float
    p90: float


@dataclass(frozen=True)
class TableFacts:
    """A table of one feature and group, of N rows and D columns."""

    feature: str
    group: str
    rows: int
    dim: int
    abundance: float
    """Information abundance, from 1 to D; NaN for a table of zeros."""
    norms: Norms
    """Over all rows."""
    moved: float | None
    """Share of the rows that differ from where they started; None if that is not known."""
    moved_of_seen: float | None
    """The same of the rows whose ids stand in the training rows; None if either is not known, or none does."""
    moved_norm: float | None
    """Median length of the rows that have moved; None if that is not known, or none has."""
    variance: float
    """Of the row that is looked up, summed over the columns: by training rows, or over the table if they are not
    known."""


@dataclass(frozen=True)
class ChangedId:
    """An id whose rows differ from those of the start or of another run."""

    id: int
    distance: float
    """Of its rows in all tables of the feature together."""
    by_group: Mapping[str, float]
    """Of its row in each table."""
    count: int | None
    """How often it stands in the training rows, if they can be read."""


@dataclass(frozen=True)
class FeatureFacts:
    """The tables of one feature."""

    feature: str
    rows: int
    seen: int | None
    """Ids that stand in the training rows; None if these cannot be read."""
    tables: Mapping[str, TableFacts]
    """By group."""
    similarity: Mapping[tuple[str, str], float]
    """Linear CKA of the tables of two groups that have the same width."""
    changed: Sequence[ChangedId]
    """The ids that have moved the most since the start, the farthest first."""


def feature_facts(
    feature: str,
    weights: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    counts: NDArray[np.int64] | None,
    *,
    top: int,
) -> FeatureFacts:
    """What the tables of a feature hold.

    Args:
        feature: its name.
        weights: its tables (N, D) by group.
        start: the same before training, of the groups for which it is known.
        counts: how often each id stands in the training rows (N,), if they can be read.
        top: ids to list.
    """
    rows = max(len(weight) for weight in weights.values())
    seen = None if counts is None else torch.from_numpy(counts > 0)
    distances = {group: row_distances(weights[group], start[group]) for group in weights if group in start}
    tables = {
        group: _table(feature, group, weight, distances.get(group), counts, seen) for group, weight in weights.items()
    }
    return FeatureFacts(
        feature=feature,
        rows=rows,
        seen=None if seen is None else int(seen.sum()),
        tables=tables,
        similarity={
            (a, b): linear_cka(weights[a], weights[b])
            for a, b in combinations(weights, 2)
            if len(weights[a]) == len(weights[b])
        },
        changed=most_changed(distances, counts, top=top),
    )


def _table(
    feature: str,
    group: str,
    weight: Tensor,
    distance: Tensor | None,
    counts: NDArray[np.int64] | None,
    seen: Tensor | None,
) -> TableFacts:
    norms = row_norms(weight)
    moved = None if distance is None else distance > 0
    of_seen = moved[seen] if moved is not None and seen is not None else None
    return TableFacts(
        feature=feature,
        group=group,
        rows=len(weight),
        dim=weight.shape[1],
        abundance=information_abundance(weight) if weight.any() else math.nan,
        norms=Norms(norms.mean().item(), *quantiles(norms, (0.1, 0.5, 0.9))),
        moved=None if moved is None else moved.double().mean().item(),
        moved_of_seen=None if of_seen is None or not len(of_seen) else of_seen.double().mean().item(),
        moved_norm=None if moved is None or not moved.any() else quantiles(norms[moved], (0.5,))[0],
        variance=_variance(weight, counts),
    )


def row_norms(weight: Tensor) -> Tensor:
    """The length of each row of (N, D) as float64 (N,), block by block."""
    return torch.cat([block.double().norm(dim=1) for block in weight.split(_BLOCK_ROWS)])


def row_distances(weight: Tensor, other: Tensor) -> Tensor:
    """The distance of each row of (N, D) to that of another such table, as float64 (N,); 0 for the same bits."""
    blocks = zip(weight.split(_BLOCK_ROWS), other.split(_BLOCK_ROWS), strict=True)
    return torch.cat([(a.double() - b.double()).norm(dim=1) for a, b in blocks])


def quantiles(values: Tensor, shares: Sequence[float]) -> list[float]:
    """Quantiles of values (N,), of any number of them, which torch.quantile does not take."""
    return np.quantile(values.numpy(), shares).tolist()


def _variance(weight: Tensor, counts: NDArray[np.int64] | None) -> float:
    """The variance of a row that is drawn as often as it is trained, summed over the columns."""
    shares = torch.ones(len(weight), dtype=torch.float64)
    if counts is not None and counts.any():
        shares = torch.from_numpy(counts).double()
    shares /= shares.sum()
    parts = list(zip(weight.split(_BLOCK_ROWS), shares.split(_BLOCK_ROWS), strict=True))
    mean = sum(share @ block.double() for block, share in parts)
    return float(sum(share @ (block.double() - mean).square().sum(dim=1) for block, share in parts))


def most_changed(distances: Mapping[str, Tensor], counts: NDArray[np.int64] | None, *, top: int) -> list[ChangedId]:
    """The ids with the largest distances (N,) over all groups together, the farthest first; none that has not moved."""
    if not distances or not top:
        return []
    together = torch.stack([distance.square() for distance in distances.values()]).sum(dim=0).sqrt()
    values, ids = together.topk(min(top, len(together)))
    return [
        ChangedId(
            id=i,
            distance=value,
            by_group={group: distance[i].item() for group, distance in distances.items()},
            count=None if counts is None else int(counts[i]),
        )
        for value, i in zip(values.tolist(), ids.tolist(), strict=True)
        if value > 0
    ]


def shares_of_input(features: Sequence[FeatureFacts]) -> dict[tuple[str, str], float]:
    """How much of what a group's tables give the model, by variance, comes from each: by feature and group, sum 1.

    Example::

        shares_of_input(features)["user_id", "like"]  # 0.31
    """
    totals: dict[str, float] = {}
    for each in features:
        for group, table in each.tables.items():
            totals[group] = totals.get(group, 0.0) + table.variance
    return {
        (each.feature, group): table.variance / totals[group] if totals[group] else math.nan
        for each in features
        for group, table in each.tables.items()
    }


def dead_tables(features: Sequence[FeatureFacts]) -> list[tuple[str, str, str]]:
    """Feature, group and reason for each table that tells the model next to nothing; one reason for each."""
    shares, dead = shares_of_input(features), []
    for each in features:
        for group, table in each.tables.items():
            share = shares[each.feature, group]
            if each.seen is not None and each.seen < 2:
                reason = f"{'one id' if each.seen else 'no id'} in the training rows"
            elif table.moved == 0 or table.moved_of_seen == 0:
                reason = "no row has moved since the start"
            elif share < _SMALL / len(features):
                reason = f"{share:.2%} of what the tables of {group} tell"
            elif table.abundance < _COLLAPSED and min(each.seen or table.rows, table.dim) > 2:
                reason = "all rows on one line"
            else:
                continue
            dead.append((each.feature, group, reason))
    return dead
