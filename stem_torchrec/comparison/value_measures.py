"""What models are compared by where labels are numbers or levels, as functions of how often each user is drawn.

The AUC of such labels is the share of pairs of rows with different labels that the predictions order rightly, a tie
counting half; for labels 0 and 1 it is that of `intervals.auc_of`. All are exact, as metrics/value_metrics.py is.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stem_torchrec.comparison.intervals import Floats, Ints, Measure, different_labels, mean_of
from stem_torchrec.metrics.ordered_pairs import shares_of_numbers

Places = NDArray[np.int32]
"""Places in a column, in half the memory of int64."""


@dataclass(frozen=True)
class _Bit:
    """The pairs of rows whose labels differ first in one bit of their ranks, counted from the highest.

    That bit tells low rows from high ones, and the bits above it are the part of a row: each pair is one of a low row
    and a high row of a part. L low rows and H high ones are in a part with both.

    Example::

        # label   10    20    30    40     rank in bits   00    01    10    11
        # part     0     0     0     0     rows           low   low   high  high    by the highest bit
        # part     0     0     1     1     rows           low   high  low   high    by the lowest one
    """

    low: Places
    """Where the amount of each low row stands, by part and score, (L,)."""
    high: Places
    """Likewise of the high rows, (H,)."""
    first: Places
    """For each high row the number of low rows in earlier parts, (H,)."""
    below: Places
    """With those of its part that have a lower score, (H,)."""
    not_above: Places
    """With those of the same score as well, (H,); `below` itself where no low row has that of a high one."""

    @classmethod
    def sort(cls, by_score: Ints, scores: Floats, rank: Ints, place: Ints, bit: int) -> "_Bit":
        """The pairs of one bit; `by_score` are N rows in the order of their scores, and the others are theirs, (N,)."""
        part, is_high = rank >> (bit + 1), (rank >> bit & 1).astype(bool)
        has_both = np.bincount(part, is_high) * np.bincount(part, ~is_high) > 0
        order = by_score[np.argsort(part[by_score], kind="stable")]
        order = order[has_both[part[order]]]
        ordered, of_part, high = scores[order], part[order], is_high[order]
        begins_part = np.ones(len(order), dtype=bool)
        begins_part[1:] = of_part[1:] != of_part[:-1]
        begins = begins_part.copy()
        begins[1:] |= ordered[1:] != ordered[:-1]
        # Equal scores of a part form one run. How many low rows are before each row, and before the end.
        lower = np.concatenate([[0], np.cumsum(~high)])
        runs, run = np.append(np.flatnonzero(begins), len(order)), np.cumsum(begins)[high]
        first = lower[np.flatnonzero(begins_part)][np.cumsum(begins_part)[high] - 1]
        below, not_above = lower[runs[run - 1]], lower[runs[run]]
        low, high, first, below, not_above = (
            each.astype(np.int32) for each in (place[order[~high]], place[order[high]], first, below, not_above)
        )
        return cls(low, high, first, below, below if np.array_equal(below, not_above) else not_above)

    def right(self, amounts: Floats) -> float:
        """The pairs in the right order, a tie counting half, each the product of the amounts of its two rows."""
        lower = np.concatenate([[0.0], np.cumsum(amounts[self.low])])
        below = lower[self.below]
        if self.not_above is not self.below:
            below = (below + lower[self.not_above]) / 2
        return float((amounts[self.high] * (below - lower[self.first])).sum())


def ordered_auc_of(scores: Floats, labels: Floats, user: Ints, weights: Floats | None = None) -> Measure:
    """The AUC of N rows, each counted as often as its user is drawn, times its weight; NaN without a pair.

    A draw takes a running sum over half of the rows for each bit of the number of different labels, 17 for 100,000 of
    them, and no sort. A row takes 8 bytes for each bit, 10 where scores are tied.

    Args:
        scores: higher for higher labels, (N,).
        labels: numbers or levels, (N,).
        user: the user of each row, numbered from 0, (N,).
        weights: of the rows, above 0, (N,); 1 if left out.
    """
    distinct, rank = np.unique(labels, return_inverse=True)
    # Without weights a row has the amount of its user, and there are fewer of these.
    place = user if weights is None else np.arange(len(user))
    by_score = np.argsort(scores, kind="stable")
    bits = [_Bit.sort(by_score, scores, rank, place, bit) for bit in range(max(len(distinct) - 1, 0).bit_length())]

    def measure(draws: Ints) -> float:
        amounts = draws.astype(np.float64) if weights is None else draws[user] * weights
        pairs = pairs_of(np.bincount(rank, amounts[place], minlength=len(distinct)))
        return math.fsum(bit.right(amounts) for bit in bits) / pairs if pairs else math.nan

    return measure


def pairs_of(amounts: Floats | Ints) -> float:
    """The pairs of rows with different labels, by the amount of the rows of each label, (L,)."""
    return float((amounts[1:] * np.cumsum(amounts)[:-1]).sum())


def ordered_gauc_of(scores: Floats, labels: Floats, user: Ints, weights: Floats | None = None) -> Measure:
    """The mean of the AUCs of the drawn users with two different labels, by the weights of their rows.

    See `ordered_auc_of`. A draw takes no more than a sum over the users.
    """
    owner, _ = different_labels(labels, user)
    mixed = np.flatnonzero(np.bincount(owner) > 1)
    columns = [torch.from_numpy(each) for each in (user, scores, labels, weights) if each is not None]
    # In the order of the users, as `mixed` is.
    shares = shares_of_numbers(*columns)
    aucs, amounts = shares.share.numpy(), shares.weight.double().numpy()

    def measure(draws: Ints) -> float:
        drawn = draws[mixed] * amounts
        return float((drawn * aucs).sum() / drawn.sum()) if drawn.any() else math.nan

    return measure


def rmse_of(scores: Floats, labels: Floats, user: Ints, weights: Floats | None = None) -> Measure:
    """The root of the mean squared error, in the unit of the labels; see `ordered_auc_of`."""
    mean = mean_of((scores - labels) ** 2, user, weights)
    return lambda draws: math.sqrt(mean(draws))


def mae_of(scores: Floats, labels: Floats, user: Ints, weights: Floats | None = None) -> Measure:
    """The mean absolute error, in the unit of the labels; see `ordered_auc_of`."""
    return mean_of(np.abs(scores - labels), user, weights)
