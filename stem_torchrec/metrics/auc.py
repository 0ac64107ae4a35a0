"""AUC and gAUC, exact, of rows that lie spread over all ranks, in memory or on disk.

An AUC is the share of (negative, positive) pairs in which the positive has the higher score, a tie counting
half (the Mann-Whitney U statistic over the number of pairs). Twice U is an integer, so pairs are counted in
int64 and any split of the rows over ranks gives the same bits. 30M x 30M pairs, doubled, are 2e15 of 9e18.

No rank ever holds all rows: they pass in pieces, of about as many rows as the caller allows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stem_torchrec.metrics.collectives import gather
from stem_torchrec.metrics.sorted_rows import SortedRows, plan_rounds, quantiles, to_their_ranks

ROWS_AT_ONCE = 4_194_304
"""Rows of a rank that are compared at a time, by default; each takes some 150 bytes meanwhile."""


@dataclass(frozen=True)
class GroupedAUC:
    """gAUC over the groups that have both classes, and how much that is."""

    value: float
    groups: int
    rows: int


def by_score(scores: Tensor, positive: Tensor, file: Path | None = None) -> SortedRows:
    """Rows as `auc_over_ranks` takes them: scores, none of them NaN, and whether the label is 1, (N,)."""
    # Adding 0.0 turns -0.0 into 0.0, its equal, so that no sort or hash can tell them apart.
    return SortedRows(scores + 0.0, positive, file=file)


def auc_over_ranks(chunks: Sequence[SortedRows], rows_at_once: int = ROWS_AT_ONCE) -> float:
    """Returns the AUC of all ranks' rows, the same on every rank; NaN unless both classes occur.

    A sample sort: the range of scores is cut into pieces, so that a pair of rows in two pieces is ordered by the
    pieces alone, and a pair in one is counted on the piece's rank. Equal scores travel as one value with a count, so
    a model that predicts one number for everything overloads no rank.

    Args:
        chunks: this rank's rows, from `by_score`; one chunk or more, which may be empty.
        rows_at_once: about as many rows of a rank are in memory.
    """
    rounds = plan_rounds(chunks, rows_at_once, lambda pieces: quantiles(chunks, pieces))
    # From here on Python integers, which do not overflow.
    doubled_u = negatives_below = positives_below = 0
    for turn in range(rounds.number):
        classes: tuple[list[_Runs], list[_Runs]] = ([], [])
        # One chunk's rows at a time, as equal scores make one run of it, and may be all of a rank's.
        for chunk in chunks:
            scores, positive = chunk.cut(*rounds.limits(turn))
            for label, runs in enumerate(classes):
                runs.append(_runs(scores[positive == label]))
        inner = rounds.inner(turn)
        negatives, positives = (
            _Runs(*to_their_ranks(inner, torch.cat([r.scores for r in runs]), torch.cat([r.rows for r in runs])))
            for runs in classes
        )
        found = torch.stack([_doubled_u(negatives, positives), negatives.rows.sum(), positives.rows.sum()])
        for rank_u, rank_negatives, rank_positives in gather(found).tolist():
            doubled_u += rank_u + 2 * negatives_below * rank_positives
            negatives_below += rank_negatives
            positives_below += rank_positives
    pairs = negatives_below * positives_below
    return doubled_u / (2 * pairs) if pairs else math.nan


def by_group(groups: Tensor, scores: Tensor, positive: Tensor, file: Path | None = None) -> SortedRows:
    """Rows as `grouped_auc_over_ranks` takes them: int64 groups, scores, none NaN, and whether the label is 1, (N,)."""
    # 2^64 / golden ratio, wrapping around: spreads all ids evenly over the integers, each to one of its own.
    return SortedRows(groups * -7046029254386353131, scores, positive.to(torch.uint8), file=file)


def grouped_auc_over_ranks(chunks: Sequence[SortedRows], rows_at_once: int = ROWS_AT_ONCE) -> GroupedAUC:
    """Returns the mean of the groups' AUCs, weighted by their rows, over groups that have both classes.

    With users as groups this is gAUC of Zhu et al., "Optimized Cost per Click in Taobao Display Advertising"
    (KDD 2017), and the metric of "Deep Interest Network" (KDD 2018):
    sum_u rows_u AUC_u / sum_u rows_u.

    All rows of a group meet on one rank, so a group as large as a rank's memory (all anonymous users under
    one id, say) does not fit; leave such rows out beforehand, they are no user's ranking anyway.

    Args:
        chunks: this rank's rows, from `by_group`; one chunk or more, which may be empty.
        rows_at_once: about as many rows of a rank are in memory.
    """
    device = chunks[0].device

    def cut(pieces: int) -> Tensor:
        ends = [-(2**63) + 2**64 * piece // pieces for piece in range(1, pieces)]
        return torch.tensor(ends, dtype=torch.int64, device=device)

    rounds = plan_rounds(chunks, rows_at_once, cut)
    totals: list[float] = []
    groups_found = rows_found = 0
    for turn in range(rounds.number):
        parts = [chunk.cut(*rounds.limits(turn)) for chunk in chunks]
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        doubled_u, negatives, positives = _doubled_u_by_group(*to_their_ranks(rounds.inner(turn), *columns))
        both = (negatives > 0) & (positives > 0)
        rows = (negatives + positives)[both]
        # In float64 from here, since integers divide into float32.
        values = doubled_u[both].double() / (2 * negatives * positives)[both].double()
        counts = gather(torch.stack([both.sum(), rows.sum()])).sum(0).tolist()
        groups_found, rows_found = groups_found + counts[0], rows_found + counts[1]
        totals += gather((rows * values).sum()).tolist()
    # fsum rounds once, whatever the order of the pieces.
    value = math.fsum(totals) / rows_found if rows_found else math.nan
    return GroupedAUC(value=value, groups=groups_found, rows=rows_found)


@dataclass(frozen=True)
class _Runs:
    """Scores of one class, each with the number of its rows; shapes (R,)."""

    scores: Tensor
    rows: Tensor


def _runs(scores: Tensor) -> _Runs:
    return _Runs(*torch.unique(scores, return_counts=True))


def _doubled_u(negatives: _Runs, positives: _Runs) -> Tensor:
    """Returns 2 U: for every positive, the negatives below it plus the negatives not above it."""
    scores, order = negatives.scores.sort()
    below = _running_sum(negatives.rows[order])
    left = below[torch.searchsorted(scores, positives.scores)]
    right = below[torch.searchsorted(scores, positives.scores, right=True)]
    return (positives.rows * (left + right)).sum()


def _doubled_u_by_group(groups: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns 2 U, the negatives and the positives of every group, each of shape (G,), without a loop.

    Example::

        # sorted by group and score; | begins a group, : begins a run of equal scores
        # labels         | 0 : 0 1 : 1 | 1 : 0 |
        # 2 U of a run     0   3     4   0   0     positives * (negatives below + negatives not above)
        # 2 U of a group   7             0
    """
    order = scores.argsort()
    order = order[groups[order].argsort(stable=True)]
    groups, scores, labels = groups[order], scores[order], labels[order]
    del order  # 8 of the 150 bytes a row that this function holds at its peak.
    group_begins = torch.ones_like(groups, dtype=torch.bool)
    group_begins[1:] = groups[1:] != groups[:-1]
    run_begins = group_begins.clone()
    run_begins[1:] |= scores[1:] != scores[:-1]

    run_edges = _edges(run_begins)
    positives = _running_sum(labels)[run_edges]
    negatives = run_edges - positives
    group_begins = group_begins[run_edges[:-1]]
    group_edges = _edges(group_begins)
    # Negatives in all groups before the run's own, which are no pairs of it.
    before = negatives[group_edges][group_begins.cumsum(0) - 1]
    doubled_u = positives.diff() * (negatives[:-1] + negatives[1:] - 2 * before)
    return (
        _running_sum(doubled_u)[group_edges].diff(),
        negatives[group_edges].diff(),
        positives[group_edges].diff(),
    )


def _edges(begins: Tensor) -> Tensor:
    """Returns the positions where `begins` is true, then its length."""
    return torch.nn.functional.pad(begins.nonzero().squeeze(1), (0, 1), value=len(begins))


def _running_sum(counts: Tensor) -> Tensor:
    """Returns the int64 sums of the first 0, 1, ..., N counts, shape (N + 1,)."""
    return torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int64), (1, 0))
