"""Counts of (negative, positive) pairs of the rows that one rank has, in the right order or tied.

U is the number of pairs in which the positive has the higher score, a tie counting half; twice U is an integer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Runs:
    """The different scores of one class, each with the number of its rows or the sum of their weights; shapes (R,)."""

    scores: Tensor
    rows: Tensor


def runs_of(scores: Tensor, weights: Tensor | None = None) -> Runs:
    """The different scores (R,) of rows (N,)."""
    if weights is None:
        return Runs(*torch.unique(scores, return_counts=True))
    values, run = torch.unique(scores, return_inverse=True)
    return Runs(values, _sums_by(run, weights.double(), len(values)))


def doubled_u(negatives: Runs, positives: Runs) -> Tensor:
    """Returns 2 U: for every positive, the negatives below it plus the negatives not above it."""
    scores, order = negatives.scores.sort()
    below = _running_sum(negatives.rows[order])
    left = below[torch.searchsorted(scores, positives.scores)]
    right = below[torch.searchsorted(scores, positives.scores, right=True)]
    return (positives.rows * (left + right)).sum()


@dataclass(frozen=True)
class GroupSums:
    """Sums over the rows of each of G groups, (G,)."""

    doubled_u: Tensor
    negatives: Tensor
    """The number of negatives, or the sum of their weights."""
    positives: Tensor
    rows: Tensor
    positive_rows: Tensor


def doubled_u_by_group(groups: Tensor, scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> GroupSums:
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
    return GroupSums(
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
