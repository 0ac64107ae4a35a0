"""AUC and gAUC, exact, of rows that lie spread over all ranks.

An AUC is the share of (negative, positive) pairs in which the positive has the higher score, a tie counting
half (the Mann-Whitney U statistic over the number of pairs). Twice U is an integer, so pairs are counted in
int64 and any split of the rows over ranks gives the same bits. 30M x 30M pairs, doubled, are 2e15 of 9e18.

No rank ever holds all rows: a rank sorts its own and what it is sent, about as many.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stem_torchrec.exchange import gather, send_rows, world_size

# Scores of each class and rank that the ranges are chosen from: a rank is sent at most 2/1024 of all rows
# beyond its share.
SAMPLES = 1024


@dataclass(frozen=True)
class GroupedAUC:
    """gAUC over the groups that have both classes, and how much that is."""

    value: float
    groups: int
    rows: int


def auc(scores: Tensor, labels: Tensor) -> float:
    """Returns the AUC of this process's rows alone; NaN unless both classes occur and no score is NaN.

    Args:
        scores: floats, higher for positives, shape (N,).
        labels: 0, 1, or NaN where the label is missing and the row is left out, shape (N,).
    """
    if scores.isnan().any():
        return math.nan
    negatives, positives = (_runs(scores[labels == label]) for label in (0, 1))
    pairs = int(negatives.rows.sum()) * int(positives.rows.sum())
    return int(_doubled_u(negatives, positives)) / (2 * pairs) if pairs else math.nan


def auc_over_ranks(scores: Tensor, positive: Tensor) -> float:
    """Returns the AUC of all ranks' rows, the same on every rank; NaN unless both classes occur.

    A sample sort: the range of scores is cut into one piece per rank, so that a pair of rows on two ranks is
    ordered by the ranks alone, and a pair on one rank is counted there. Equal scores travel as one value with
    a count, so a model that predicts one number for everything overloads no rank.

    Args:
        scores: floats, none is NaN, shape (N,) where N differs between ranks and may be 0.
        positive: whether the label is 1, shape (N,).
    """
    classes = [_runs(scores[~positive]), _runs(scores[positive])]
    if world_size() > 1:
        boundaries = _boundaries(classes)
        for index, runs in enumerate(classes):
            destination = torch.searchsorted(boundaries, runs.scores, right=True)
            classes[index] = _Runs(*send_rows(destination, runs.scores, runs.rows))
    negatives, positives = classes
    counts = torch.stack([_doubled_u(negatives, positives), negatives.rows.sum(), positives.rows.sum()])

    # From here on Python integers, which do not overflow.
    doubled_u = negatives_below = positives_below = 0
    for rank_u, rank_negatives, rank_positives in gather(counts).tolist():
        doubled_u += rank_u + 2 * negatives_below * rank_positives
        negatives_below += rank_negatives
        positives_below += rank_positives
    pairs = negatives_below * positives_below
    return doubled_u / (2 * pairs) if pairs else math.nan


def grouped_auc_over_ranks(groups: Tensor, scores: Tensor, positive: Tensor) -> GroupedAUC:
    """Returns the mean of the groups' AUCs, weighted by their rows, over groups that have both classes.

    With users as groups this is gAUC of Zhu et al., "Optimized Cost per Click in Taobao Display Advertising"
    (KDD 2017), and the metric of "Deep Interest Network" (KDD 2018):
    sum_u rows_u AUC_u / sum_u rows_u.

    All rows of a group meet on one rank, so a group as large as a rank's memory (all anonymous users under
    one id, say) does not fit; leave such rows out beforehand, they are no user's ranking anyway.

    Args:
        groups: int64, shape (N,) where N differs between ranks and may be 0.
        scores: floats, none is NaN, shape (N,).
        positive: whether the label is 1, shape (N,).
    """
    groups, scores, labels = send_rows(_home(groups), groups, scores, positive.to(torch.uint8))
    doubled_u, negatives, positives = _doubled_u_by_group(groups, scores, labels)
    both = (negatives > 0) & (positives > 0)
    rows = (negatives + positives)[both]
    # In float64 from here, since integers divide into float32.
    values = doubled_u[both].double() / (2 * negatives * positives)[both].double()
    weighted = (rows * values).sum()
    counts = gather(torch.stack([both.sum(), rows.sum()])).sum(0).tolist()
    # fsum rounds once, whatever the order of the ranks.
    total = math.fsum(gather(weighted).tolist())
    return GroupedAUC(value=total / counts[1] if counts[1] else math.nan, groups=counts[0], rows=counts[1])


@dataclass(frozen=True)
class _Runs:
    """Scores of one class, each with the number of its rows; shapes (R,)."""

    scores: Tensor
    rows: Tensor


def _runs(scores: Tensor) -> _Runs:
    # Adding 0.0 turns -0.0 into 0.0, its equal, so that no sort or hash can tell them apart.
    return _Runs(*torch.unique(scores + 0.0, return_counts=True))


def _doubled_u(negatives: _Runs, positives: _Runs) -> Tensor:
    """Returns 2 U: for every positive, the negatives below it plus the negatives not above it."""
    scores, order = negatives.scores.sort()
    below = _running_sum(negatives.rows[order])
    left = below[torch.searchsorted(scores, positives.scores)]
    right = below[torch.searchsorted(scores, positives.scores, right=True)]
    return (positives.rows * (left + right)).sum()


def _boundaries(classes: list[_Runs]) -> Tensor:
    """Returns the W - 1 scores, ascending, at which the next rank's range begins; the same on all ranks."""
    samples, weights = [], []
    for runs in classes:
        # The runs ascend, so evenly spaced positions are quantiles; each stands for R / SAMPLES runs.
        size = len(runs.scores)
        position = torch.arange(SAMPLES, device=runs.scores.device) * size // SAMPLES
        samples.append(runs.scores[position] if size else runs.scores.new_zeros(SAMPLES))
        weights.append(torch.full_like(position, size))
    sample, order = gather(torch.cat(samples)).flatten().sort()
    weight = gather(torch.cat(weights)).flatten()[order].cumsum(0)
    ranks = world_size()
    share = weight[-1] * torch.arange(1, ranks, device=weight.device) // ranks
    return sample[torch.searchsorted(weight, share).clamp(max=len(sample) - 1)]


def _home(groups: Tensor) -> Tensor:
    """Returns the rank that each group's rows meet on."""
    # 2^64 / golden ratio, wrapping around: spreads ids that share a factor with the world size.
    return ((groups * -7046029254386353131) >> 32) % world_size()


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
