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


@dataclass(frozen=True)
class _Bit:
    """The pairs of rows whose labels differ first in one bit of their ranks, counted from the highest.

    That bit is the class of a row, low or high, and the bits above it are its part; M rows are in a part with both.

    Example::

        # label   10    20    30    40     rank in bits   00    01    10    11
        # part     0     0     0     0     class          low   low   high  high    of the highest bit
        # part     0     0     1     1     class          low   high  low   high    of the lowest one
    """

    place: NDArray[np.int32]
    """Where the amount of each row stands, by part and score, (M,)."""
    high: NDArray[np.bool_]
    """The class of each row, (M,)."""
    runs: Ints
    """Where each run of rows with one part and one score begins, (R,)."""
    parts: Ints
    """Which of these runs begin a part."""

    @classmethod
    def sort(cls, by_score: Ints, scores: Floats, rank: Ints, place: Ints, bit: int) -> "_Bit":
        """The pairs of one bit; `by_score` are N rows in the order of their scores, and the others are theirs, (N,)."""
        part, high = rank >> (bit + 1), (rank >> bit & 1).astype(bool)
        has_both = np.bincount(part, high) * np.bincount(part, ~high) > 0
        order = by_score[np.argsort(part[by_score], kind="stable")]
        order = order[has_both[part[order]]]
        ordered, of_part = scores[order], part[order]
        begins_part = np.ones(len(order), dtype=bool)
        begins_part[1:] = of_part[1:] != of_part[:-1]
        begins = begins_part.copy()
        begins[1:] |= ordered[1:] != ordered[:-1]
        runs = np.flatnonzero(begins)
        return cls(place[order].astype(np.int32), high[order], runs, np.flatnonzero(begins_part[runs]))

    def right(self, amounts: Floats) -> float:
        """The pairs in the right order, each the product of the amounts of its two rows."""
        own = amounts[self.place]
        high = own * self.high
        low = own - high
        if len(self.runs) < len(own):
            high, low = (np.add.reduceat(each, self.runs) for each in (high, low))
        below = np.cumsum(low) - low
        # Rows of earlier parts are below those of a part as well, but form no pairs with them.
        of_earlier = np.add.reduceat(high, self.parts) @ below[self.parts]
        return float(high @ (below + low / 2) - of_earlier)


def ordered_auc_of(scores: Floats, labels: Floats, user: Ints, weights: Floats | None = None) -> Measure:
    """The AUC of N rows, each counted as often as its user is drawn, times its weight; NaN without a pair.

    A draw takes a running sum over the rows for each bit of the number of different labels, 17 for 100,000 rows, and
    no sort. Memory is about 5 bytes for each of these, 13 where scores have ties.

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
    return float(amounts[1:] @ np.cumsum(amounts)[:-1])


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
        return float(drawn @ aucs / drawn.sum()) if drawn.any() else math.nan

    return measure


def rmse_of(scores: Floats, labels: Floats, user: Ints, weights: Floats | None = None) -> Measure:
    """The root of the mean squared error, in the unit of the labels; see `ordered_auc_of`."""
    mean = mean_of((scores - labels) ** 2, user, weights)
    return lambda draws: math.sqrt(mean(draws))


def mae_of(scores: Floats, labels: Floats, user: Ints, weights: Floats | None = None) -> Measure:
    """The mean absolute error, in the unit of the labels; see `ordered_auc_of`."""
    return mean_of(np.abs(scores - labels), user, weights)
