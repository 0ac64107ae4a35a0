"""AUC and gAUC, exact, of rows that are spread over all ranks, in memory or on disk.

An AUC is the share of (negative, positive) pairs in which the positive has the higher score, a tie counting
half (the Mann-Whitney U statistic over the number of pairs). Twice U is an integer, so pairs are counted in
int64 and any split of the rows over ranks gives the same bits. 30M x 30M pairs, doubled, are 2e15 of 9e18.
Where rows have weights, a pair counts the product of its two, summed up in float64.

No rank ever holds all rows: they are exchanged in pieces of about as many rows as the caller allows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stem_torchrec.metrics.collectives import gather
from stem_torchrec.metrics.sorted_rows import SortedRows, plan_rounds, quantiles, send_to_piece_ranks

ROWS_AT_ONCE = 4_194_304
"""Rows of a rank that are compared at a time, by default; each takes about 150 bytes meanwhile."""


@dataclass(frozen=True)
class GroupedAUC:
    """gAUC over the groups that have both classes."""

    value: float
    """NaN if no group has both."""
    groups: int
    """Number of groups that have both."""
    rows: int
    """Rows of those groups."""


def by_score(
    scores: Tensor, positive: Tensor, file: Path | None = None, *, weights: Tensor | None = None
) -> SortedRows:
    """Sorts a chunk of rows for `auc_over_ranks`.

    Args:
        scores: none is NaN, shape (N,).
        positive: whether the label is 1, shape (N,).
        file: see `SortedRows`.
        weights: above 0, shape (N,), in all chunks of all ranks or in none.
    """
    # Adding 0.0 turns -0.0 into 0.0, its equal, so that no sort or hash can tell them apart.
    return SortedRows(scores + 0.0, positive, *([] if weights is None else [weights]), file=file)


def auc_over_ranks(chunks: Sequence[SortedRows], rows_at_once: int = ROWS_AT_ONCE) -> float:
    """Returns the AUC of all ranks' rows, the same on every rank; NaN unless both classes occur.

    A sample sort: the range of scores is cut into pieces, so that a pair of rows in two pieces is ordered by the
    pieces alone, and a pair in one piece is counted on that piece's rank. Equal scores are sent as one value with a
    count, so a model that predicts one number for everything overloads no rank.

    Args:
        chunks: this rank's rows, from `by_score`; one chunk or more, which may be empty.
        rows_at_once: about as many rows of a rank are in memory.

    Example::

        # rank 0: scores [0.1, 0.8], labels [0, 1]      rank 1: scores [0.3, 0.8], labels [1, 0]
        # of the 4 pairs (negative, positive) 2 are ordered rightly, and 1 is a tie
        auc_over_ranks([by_score(scores, labels == 1)])  # 0.625 on both ranks
    """
    rounds = plan_rounds(chunks, rows_at_once, lambda pieces: quantiles(chunks, pieces))
    # Python integers, which do not overflow, unless rows have weights.
    doubled_u = negatives_below = positives_below = 0
    for turn in range(rounds.number):
        classes: tuple[list[_Runs], list[_Runs]] = ([], [])
        # One chunk at a time: equal scores shrink to one run, and may be all rows of a rank.
        for chunk in chunks:
            scores, positive, *weights = chunk.cut(*rounds.limits(turn))
            for label, runs in enumerate(classes):
                runs.append(_runs(*(column[positive == label] for column in (scores, *weights))))
        inner = rounds.inner(turn)
        negatives, positives = (
            _Runs(*send_to_piece_ranks(inner, torch.cat([r.scores for r in runs]), torch.cat([r.rows for r in runs])))
            for runs in classes
        )
        counts = torch.stack([_doubled_u(negatives, positives), negatives.rows.sum(), positives.rows.sum()])
        for rank_u, rank_negatives, rank_positives in gather(counts).tolist():
            doubled_u += rank_u + 2 * negatives_below * rank_positives
            negatives_below += rank_negatives
            positives_below += rank_positives
    pairs = negatives_below * positives_below
    return doubled_u / (2 * pairs) if pairs else math.nan


def by_group(
    groups: Tensor, scores: Tensor, positive: Tensor, file: Path | None = None, *, weights: Tensor | None = None
) -> SortedRows:
    """Sorts a chunk of rows for `grouped_auc_over_ranks`.

    Args:
        groups: int64, such as user ids, shape (N,).
        scores: none is NaN, shape (N,).
        positive: whether the label is 1, shape (N,).
        file: see `SortedRows`.
        weights: see `by_score`.
    """
    columns = [positive.to(torch.uint8), *([] if weights is None else [weights])]
    # Times 2^64 / golden ratio, wrapping around: maps each id to another integer, spread evenly.
    return SortedRows(groups * -7046029254386353131, scores, *columns, file=file)


def grouped_auc_over_ranks(chunks: Sequence[SortedRows], rows_at_once: int = ROWS_AT_ONCE) -> GroupedAUC:
    """Returns the mean of the groups' AUCs, weighted by their rows, over groups that have both classes.

    If rows have weights, a group's AUC is that of the weighted pairs, and it counts with the sum of its rows' weights.

    With users as groups this is gAUC of Zhu et al., "Optimized Cost per Click in Taobao Display Advertising"
    (KDD 2017), and the metric of "Deep Interest Network" (KDD 2018):
    sum_u rows_u AUC_u / sum_u rows_u.

    All rows of a group are sent to one rank, so a group must fit into a rank's memory. Leave out rows such as those of
    all anonymous users under one id; they are not the ranking of one user anyway.

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
    num_groups = num_rows = 0
    weights: list[float] = []
    for turn in range(rounds.number):
        parts = [chunk.cut(*rounds.limits(turn)) for chunk in chunks]
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        sums = _doubled_u_by_group(*send_to_piece_ranks(rounds.inner(turn), *columns))
        both = (sums.rows > sums.positive_rows) & (sums.positive_rows > 0)
        # In float64, as torch divides integers into float32.
        values = sums.doubled_u[both].double() / (2 * sums.negatives * sums.positives)[both].double()
        counts = gather(torch.stack([both.sum(), sums.rows[both].sum()])).sum(0).tolist()
        num_groups, num_rows = num_groups + counts[0], num_rows + counts[1]
        weight = (sums.negatives + sums.positives)[both]
        totals += gather((weight * values).sum()).tolist()
        weights += gather(weight.sum()).tolist()
    # fsum rounds once, so the order of the pieces does not matter.
    value = math.fsum(totals) / math.fsum(weights) if num_rows else math.nan
    return GroupedAUC(value=value, groups=num_groups, rows=num_rows)


@dataclass(frozen=True)
class _Runs:
    """Scores of one class, each with the number of its rows or the sum of their weights; shapes (R,)."""

    scores: Tensor
    rows: Tensor


def _runs(scores: Tensor, weights: Tensor | None = None) -> _Runs:
    if weights is None:
        return _Runs(*torch.unique(scores, return_counts=True))
    values, run = torch.unique(scores, return_inverse=True)
    return _Runs(values, _sums_by(run, weights.double(), len(values)))


def _doubled_u(negatives: _Runs, positives: _Runs) -> Tensor:
    """Returns 2 U: for every positive, the negatives below it plus the negatives not above it."""
    scores, order = negatives.scores.sort()
    below = _running_sum(negatives.rows[order])
    left = below[torch.searchsorted(scores, positives.scores)]
    right = below[torch.searchsorted(scores, positives.scores, right=True)]
    return (positives.rows * (left + right)).sum()


@dataclass(frozen=True)
class _GroupSums:
    """Sums over the rows of each of G groups, (G,)."""

    doubled_u: Tensor
    negatives: Tensor
    """The number of negatives, or the sum of their weights."""
    positives: Tensor
    rows: Tensor
    positive_rows: Tensor


def _doubled_u_by_group(groups: Tensor, scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> _GroupSums:
    """Returns 2 U, the negatives and the positives of every group without a loop.

    Example::

        # rows sorted by group and score; | begins a group, : begins a run of equal scores
        # labels         | 0 : 0 1 : 1 | 1 : 0 |
        # 2 U of a run     0   3     4   0   0     positives * (negatives below + negatives not above)
        # 2 U of a group   7             0
    """
    order = scores.argsort()
    order = order[groups[order].argsort(stable=True)]
    groups, scores, labels = groups[order], scores[order], labels[order]
    weights = None if weights is None else weights[order].double()
    del order  # 8 of the 150 bytes a row that this function holds at its peak.
    group_begins = torch.ones_like(groups, dtype=torch.bool)
    group_begins[1:] = groups[1:] != groups[:-1]
    run_begins = group_begins.clone()
    run_begins[1:] |= scores[1:] != scores[:-1]

    run_edges = _edges(run_begins)
    positive_rows = _running_sum(labels)[run_edges]
    if weights is None:
        positives, negatives = positive_rows, run_edges - positive_rows
    else:
        positives, negatives = (_running_sum(weights * amount)[run_edges] for amount in (labels, 1 - labels))
    group_begins = group_begins[run_edges[:-1]]
    group_edges = _edges(group_begins)
    group = group_begins.cumsum(0) - 1
    # Negatives of all earlier groups, which form no pairs with the run.
    before = negatives[group_edges][group]
    doubled_u = positives.diff() * (negatives[:-1] + negatives[1:] - 2 * before)
    sums = [_sums_by(group, each, len(group_edges) - 1) for each in (doubled_u, negatives.diff(), positives.diff())]
    return _GroupSums(
        doubled_u=sums[0],
        negatives=sums[1],
        positives=sums[2],
        rows=run_edges[group_edges].diff(),
        positive_rows=positive_rows[group_edges].diff(),
    )


def _sums_by(part: Tensor, amounts: Tensor, parts: int) -> Tensor:
    """The sum of the amounts (N,) of each part, (parts,); apart from each other, so that large ones cost no digits."""
    return amounts.new_zeros(parts).index_add_(0, part, amounts)


def _edges(begins: Tensor) -> Tensor:
    """Returns the positions where `begins` is true, then its length."""
    return torch.nn.functional.pad(begins.nonzero().squeeze(1), (0, 1), value=len(begins))


def _running_sum(amounts: Tensor) -> Tensor:
    """Returns the sums of the first 0, 1, ..., N amounts, shape (N + 1,): of counts in int64, else in float64."""
    kind = torch.float64 if amounts.is_floating_point() else torch.int64
    return torch.nn.functional.pad(amounts.cumsum(0, dtype=kind), (1, 0))
