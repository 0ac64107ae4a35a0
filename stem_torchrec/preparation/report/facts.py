"""What the report tells of a log, as numbers: of its labels, its features and its groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log2

import ibis.expr.types as ir

from stem_torchrec.preparation.engines.engine import Engine
from stem_torchrec.preparation.report.leak_check import LoneAuc
from stem_torchrec.preparation.writing.encoding import is_positive

MOST_FREQUENT = 100
"""Ids whose shares are compared between splits; all others are one."""
SHARES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
"""Quantiles of numbers."""


@dataclass(frozen=True)
class Collisions:
    """Values of train that share an id of a hash feature with another value."""

    ids: int
    """Ids that the hash may give."""
    values: int
    """Different values of train."""
    rows: int
    """How often they occur."""
    shared_values: int
    """Different values whose id another value has as well."""
    shared_rows: int
    """How often these occur."""
    lesser_rows: int
    """How often an id stands for a value that is not the most frequent one of it."""


@dataclass(frozen=True)
class FeatureFacts:
    """A feature with ids."""

    ids: int
    """Rows of its tables."""
    ids_of_train: int
    """Ids that occur in train."""
    coverage: Mapping[str, float]
    """Share of rows with a value, by split."""
    unseen: Mapping[str, float]
    """Share of ids that train does not have, by split; of a vocabulary in train, of values that it left out."""
    drift: Mapping[str, float]
    """Divergence from train, by split."""
    aucs: Mapping[str, LoneAuc]
    """By label."""
    collisions: Collisions | None = None


@dataclass(frozen=True)
class NumberFacts:
    """A dense feature, as it is before it is scaled."""

    missing: Mapping[str, float]
    """Share of rows without a number, by split."""
    quantiles: Mapping[str, Sequence[float]]
    """At SHARES, by split; empty for a split without a number."""
    drift: Mapping[str, float]
    aucs: Mapping[str, LoneAuc]


@dataclass(frozen=True)
class PairFacts:
    """Two labels in the rows of train."""

    rows: int
    both_present: int
    both_positive: int


@dataclass(frozen=True)
class GroupFacts:
    """The groups of gAUC in valid."""

    column: str
    groups: int
    single: int
    """Groups with one row."""
    rows: int


@dataclass(frozen=True)
class LogFacts:
    """All that the report tells."""

    steps: Mapping[str, int]
    """Rows that were left after each step."""
    features: Mapping[str, FeatureFacts]
    numbers: Mapping[str, NumberFacts]
    pairs: Mapping[tuple[str, str], PairFacts]
    group: GroupFacts | None


def divergence(counts: Sequence[int], others: Sequence[int]) -> float:
    """The Jensen-Shannon divergence of two splits in bits: 0 for equal shares, 1 if they have nothing in common.

    With the shares p and q of each id and their mean m = (p + q) / 2:
    (sum of p * log2(p / m) + sum of q * log2(q / m)) / 2. NaN for a split without ids.

    Example::

        divergence([1, 1], [2, 2])  # 0.0
        divergence([3, 0], [0, 5])  # 1.0
    """
    if not sum(counts) or not sum(others):
        return float("nan")
    total = 0.0
    for a, b in zip(counts, others, strict=True):
        p, q = a / sum(counts), b / sum(others)
        total += sum(share * log2(2 * share / (p + q)) for share in (p, q) if share)
    return max(total / 2, 0.0)


def pairs_of_labels(train: ir.Table, labels: Sequence[str], engine: Engine) -> dict[tuple[str, str], PairFacts]:
    """How often both labels of each pair are present, and positive, in train."""
    pairs = list(combinations(labels, 2))
    if not pairs:
        return {}
    sums: dict[str, ir.Value] = {"rows": train.count()}
    for i, (a, b) in enumerate(pairs):
        sums[f"present_{i}"] = (train[a].notnull() & train[b].notnull()).cast("int64").sum()
        sums[f"positive_{i}"] = (is_positive(train[a]) * is_positive(train[b])).sum()
    [(rows, *numbers)] = engine.rows(train.aggregate(**sums))
    counts = [int(number or 0) for number in numbers]
    return {
        pair: PairFacts(int(rows), present, positive)
        for pair, present, positive in zip(pairs, counts[::2], counts[1::2], strict=True)
    }


def groups_of_rows(valid: ir.Table, column: str, engine: Engine) -> GroupFacts:
    """How many groups valid has, and how many of one row."""
    groups = valid.group_by(column).aggregate(rows=valid.count())
    single = (groups["rows"] == 1).cast("int64").sum()
    [numbers] = engine.rows(groups.aggregate(groups=groups.count(), single=single, rows=groups["rows"].sum()))
    return GroupFacts(column, *(int(number or 0) for number in numbers))
