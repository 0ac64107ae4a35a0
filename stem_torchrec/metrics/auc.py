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
from stem_torchrec.metrics.ordered_pairs import GroupShares, pairs_between, shares_of_numbers
from stem_torchrec.metrics.pair_counts import doubled_u_by_group
from stem_torchrec.metrics.sorted_rows import SortedRows, plan_rounds, send_to_piece_ranks

ROWS_AT_ONCE = 4_194_304
"""Rows of a rank that are compared at a time, by default; each takes about 150 bytes meanwhile."""


@dataclass(frozen=True)
class GroupedAUC:
    """gAUC over the groups that have two different labels."""

    value: float
    """NaN if no group has two."""
    groups: int
    """Number of groups that have two."""
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

    Args:
        chunks: this rank's rows, from `by_score`; one chunk or more, which may be empty.
        rows_at_once: about as many rows of a rank are in memory.

    Example::

        # rank 0: scores [0.1, 0.8], labels [0, 1]      rank 1: scores [0.3, 0.8], labels [1, 0]
        # of the 4 pairs (negative, positive) 2 are ordered rightly, and 1 is a tie
        auc_over_ranks([by_score(scores, labels == 1)])  # 0.625 on both ranks
    """
    return pairs_between(chunks, lambda positive: positive, 2, rows_at_once).share


def by_group(
    groups: Tensor, scores: Tensor, labels: Tensor, file: Path | None = None, *, weights: Tensor | None = None
) -> SortedRows:
    """Sorts a chunk of rows for `grouped_auc_over_ranks`.

    Args:
        groups: int64, such as user ids, shape (N,).
        scores: none is NaN, shape (N,).
        labels: whether each is 1, or numbers, shape (N,).
        file: see `SortedRows`.
        weights: see `by_score`.
    """
    labels = labels.to(torch.uint8) if labels.dtype == torch.bool else labels
    columns = [labels, *([] if weights is None else [weights])]
    # Times 2^64 / golden ratio, wrapping around: maps each id to another integer, spread evenly.
    return SortedRows(groups * -7046029254386353131, scores, *columns, file=file)


def grouped_auc_over_ranks(
    chunks: Sequence[SortedRows], rows_at_once: int = ROWS_AT_ONCE, *, are_numbers: bool = False
) -> GroupedAUC:
    """Returns the mean of the groups' AUCs, weighted by their rows, over groups that have two different labels.

    If rows have weights, a group's AUC is that of the weighted pairs, and it counts with the sum of its rows' weights.

    With users as groups this is gAUC of Zhu et al., "Optimized Cost per Click in Taobao Display Advertising"
    (KDD 2017), and the metric of "Deep Interest Network" (KDD 2018):
    sum_u rows_u AUC_u / sum_u rows_u. Of numbers, AUC_u is the XAUC of a user's rows (see ordered_pairs.py), so that
    labels 0 and 1 taken as numbers have the same gAUC.

    All rows of a group are sent to one rank, so a group must fit into a rank's memory. Leave out rows such as those of
    all anonymous users under one id; they are not the ranking of one user anyway.

    Args:
        chunks: this rank's rows, from `by_group`; one chunk or more, which may be empty.
        rows_at_once: about as many rows of a rank are in memory.
        are_numbers: whether the labels are any numbers, in place of whether they are 1.
    """
    device, shares = chunks[0].device, shares_of_numbers if are_numbers else _shares_of_classes

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
        mixed = shares(*send_to_piece_ranks(rounds.inner(turn), *columns))
        counts = gather(torch.stack([mixed.rows.new_tensor(len(mixed.rows)), mixed.rows.sum()])).sum(0).tolist()
        num_groups, num_rows = num_groups + counts[0], num_rows + counts[1]
        totals += gather((mixed.weight * mixed.share).sum()).tolist()
        weights += gather(mixed.weight.sum()).tolist()
    # fsum rounds once, so the order of the pieces does not matter.
    value = math.fsum(totals) / math.fsum(weights) if num_rows else math.nan
    return GroupedAUC(value=value, groups=num_groups, rows=num_rows)


def _shares_of_classes(groups: Tensor, scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> GroupShares:
    """The shares of groups (N,) whose labels are 0 and 1."""
    sums = doubled_u_by_group(groups, scores, labels, weights)
    both = (sums.rows > sums.positive_rows) & (sums.positive_rows > 0)
    # In float64, as torch divides integers into float32.
    share = sums.doubled_u[both].double() / (2 * sums.negatives * sums.positives)[both].double()
    return GroupShares(share, (sums.negatives + sums.positives)[both], sums.rows[both])
