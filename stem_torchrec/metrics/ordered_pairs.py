"""Pairs of rows with different labels, and how many of them scores order rightly, of rows spread over all ranks.

The share of such pairs is the AUC of labels 0 and 1, and of numbers and levels XAUC (Zhan et al., "Deconfounding
Duration Bias in Watch-time Prediction for Video Recommendation", KDD 2022), with a tie of scores counting half. No rank
holds all rows: they are exchanged in pieces of about as many rows as the caller allows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from stem_torchrec.metrics.collectives import gather, world_size
from stem_torchrec.metrics.pair_counts import GroupSums, Runs, doubled_u, doubled_u_by_group, runs_of
from stem_torchrec.metrics.sorted_rows import SortedRows, plan_rounds, quantiles, send_to_piece_ranks


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows with different labels; of rows with weights, sums of the products of both."""

    doubled_right: float
    """Twice the number in the right order, and once that of ties: an integer, which does not overflow, or a float."""
    number: float

    @property
    def share(self) -> float:
        """The share in the right order, a tie counting half; NaN without a pair."""
        return self.doubled_right / (2 * self.number) if self.number else math.nan

    def __add__(self, other: "Pairs") -> "Pairs":
        return Pairs(self.doubled_right + other.doubled_right, self.number + other.number)


def pairs_between(
    chunks: Sequence[SortedRows], class_of: Callable[[Tensor], Tensor], classes: int, rows_at_once: int
) -> Pairs:
    """The pairs of rows in two classes, of which a row in the higher one should have the higher score.

    A sample sort: the range of scores is cut into pieces, so that a pair of rows in two pieces is ordered by the
    pieces alone, and a pair in one piece is counted on that piece's rank. Equal scores are sent as one value with a
    count, so a model that predicts one number for everything overloads no rank. Takes a sort of the rows for each
    class. All ranks call it.

    Args:
        chunks: this rank's rows by score, and in their first column what `class_of` takes; one chunk or more.
        class_of: from the first column (N,) to the classes (N,), from 0 on.
        classes: their number, K.
        rows_at_once: about as many rows of a rank are in memory.
    """
    rounds = plan_rounds(chunks, rows_at_once, lambda pieces: quantiles(chunks, pieces))
    doubled_right: float = 0
    # Python integers, which do not overflow, unless rows have weights.
    below: list[float] = [0] * classes
    for turn in range(rounds.number):
        by_class: list[list[Runs]] = [[] for _ in range(classes)]
        # One chunk at a time: equal scores shrink to one run, and may be all rows of a rank.
        for chunk in chunks:
            scores, column, *weights = chunk.cut(*rounds.limits(turn))
            of_row = class_of(column)
            for number, runs in enumerate(by_class):
                runs.append(runs_of(*(each[of_row == number] for each in (scores, *weights))))
        inner = rounds.inner(turn)
        for u, rows in gather(_counts([_sent(inner, runs) for runs in by_class])).tolist():
            lower = [0, *accumulate(below)]
            doubled_right += sum(u) + sum(2 * lower[k] * rows[k] for k in range(1, classes))
            below = [before + more for before, more in zip(below, rows, strict=True)]
    lower = [0, *accumulate(below)]
    return Pairs(doubled_right, sum(lower[k] * below[k] for k in range(1, classes)))


def _sent(inner: Tensor, runs: Sequence[Runs]) -> Runs:
    """This rank's piece of the scores of a class."""
    scores, rows = torch.cat([each.scores for each in runs]), torch.cat([each.rows for each in runs])
    return Runs(*send_to_piece_ranks(inner, scores, rows))


def _counts(by_class: Sequence[Runs]) -> Tensor:
    """For each of K classes 2 U of its rows over those of all lower ones, and its rows, (2, K)."""
    lower, doubled = by_class[0], [by_class[0].rows.new_zeros(())]
    for runs in by_class[1:]:
        doubled.append(doubled_u(lower, runs))
        lower = Runs(torch.cat([lower.scores, runs.scores]), torch.cat([lower.rows, runs.rows]))
    return torch.stack([torch.stack(doubled), torch.stack([runs.rows.sum() for runs in by_class])])


def pairs_of_numbers(by_label: Sequence[SortedRows], by_score: Sequence[SortedRows], rows_at_once: int) -> Pairs:
    """The pairs of rows with different labels, which are any numbers; all ranks call it.

    The labels are cut into pieces. A pair in one piece is counted on that piece's rank, with a sort for each bit of the
    number of its labels, and a pair in two pieces as `pairs_between` counts them: the pieces are the classes.

    Args:
        by_label: this rank's rows by label, with scores, and weights if rows have some.
        by_score: the same rows by score, with labels, and weights.
        rows_at_once: about as many rows of a rank are in memory; each takes about 150 bytes meanwhile. Rows with one
            label are in one piece.
    """
    rounds = plan_rounds(by_label, rows_at_once, lambda pieces: quantiles(by_label, pieces))
    pairs = Pairs(0, 0)
    for turn in range(rounds.number):
        parts = [chunk.cut(*rounds.limits(turn)) for chunk in by_label]
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        for counts in gather(_within(*send_to_piece_ranks(rounds.inner(turn), *columns))).tolist():
            pairs = pairs + Pairs(*counts)
    classes = rounds.number * world_size()
    if classes == 1:
        return pairs

    def piece_of(labels: Tensor) -> Tensor:
        return torch.searchsorted(rounds.boundaries, labels, right=True)

    return pairs + pairs_between(by_score, piece_of, classes, rows_at_once)


def _within(labels: Tensor, scores: Tensor, weights: Tensor | None = None) -> Tensor:
    """What `Pairs` has, (2,), of the pairs of these rows."""
    values, rank = labels.unique(return_inverse=True)
    counts = torch.zeros(2, dtype=torch.int64 if weights is None else torch.float64, device=labels.device)
    for _, sums in _by_bit(0, rank, max(len(values) - 1, 0).bit_length(), scores, weights):
        counts += torch.stack([sums.doubled_u.sum(), (sums.negatives * sums.positives).sum()])
    return counts


def _by_bit(
    group: Tensor | int, rank: Tensor, bits: int, scores: Tensor, weights: Tensor | None
) -> Iterator[tuple[Tensor, GroupSums]]:
    """For each bit of the ranks of labels in their groups, the parts (N,) of the groups, and the sums of each part.

    Two labels of a group differ first in one bit of their ranks, counted from the highest: with that bit as the class,
    and the bits above it as the part, each pair is one of a negative and a positive in one part, once.
    """
    for bit in range(bits):
        part = (group << bits) + (rank >> (bit + 1))
        yield part, doubled_u_by_group(part, scores, (rank >> bit & 1).to(torch.uint8), weights)


@dataclass(frozen=True)
class GroupShares:
    """The groups of rows that have a pair of rows with different labels, (G,) each."""

    share: Tensor
    """Of the pairs of a group, those that scores order rightly, a tie counting half; float64."""
    weight: Tensor
    """The number of its rows, or the sum of their weights."""
    rows: Tensor


def shares_of_numbers(groups: Tensor, scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> GroupShares:
    """The shares of groups (N,) whose labels are any numbers, with a sort for each bit of a group's number of labels.

    Example::

        # group    7       7       7       8       8
        # label    20      10      30      5       5
        # rank     1       0       2       0       0
        # score    0.4     0.4     0.9     0.1     0.3      of 3 pairs of group 7 two are right, one is a tie
        shares_of_numbers(groups, scores, labels)  # share [5 / 6], weight [3], rows [3]
    """
    _, label = labels.unique(return_inverse=True)
    _, group, rows = groups.unique(return_inverse=True, return_counts=True)
    distinct, position = (group * len(labels) + label).unique(return_inverse=True)
    of_label = distinct // max(len(labels), 1)
    number = of_label.bincount(minlength=len(rows))
    rank = position - (number.cumsum(0) - number)[group]
    del label, position  # So that a row takes 25 bytes beside the 150 of a sort.
    kind = torch.int64 if weights is None else torch.float64
    right, pairs = (torch.zeros(len(rows), dtype=kind, device=labels.device) for _ in range(2))
    bits = (int(number.max()) - 1).bit_length() if len(rows) else 0
    for part, sums in _by_bit(group, rank, bits, scores, weights):
        of_part = part.unique() >> bits
        right.index_add_(0, of_part, sums.doubled_u)
        pairs.index_add_(0, of_part, sums.negatives * sums.positives)
    weight = rows if weights is None else right.new_zeros(len(rows)).index_add_(0, group, weights.double())
    # By the labels, as weights of pairs may be too small for a number.
    has = number > 1
    return GroupShares(right[has].double() / (2 * pairs[has]).double(), weight[has], rows[has])
