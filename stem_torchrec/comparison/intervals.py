"""Differences between two models with paired bootstrap intervals over users and seeds, which resampling.py draws.

All models predict the same rows, so every draw of users is applied to all of them, and what makes a user easy or hard
for both cancels in the difference. The same holds for a draw of seeds, which share the order of training rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Measure = Callable[[Ints], float]
"""A metric of fixed rows as a function of how often each user is drawn, (U,)."""

MIN_USERS = 20
"""Without this many users with a positive, and as many with a negative, there is no interval: a bootstrap of so few
users repeats the accident of which users they are. Of numbers and levels it takes as many with a label other than v,
whichever v; see `LabelUsers`. On 300 simulated logs of 150 users without a difference a 95 % interval excluded 0 in
21 % with 3 users behind the positives, 16 % with 5, 13 % with 10 and 7 to 9 % with 20 to 50."""


@dataclass(frozen=True)
class Interval:
    """A difference with its interval and p-value; low, high and the p-values are NaN if there is no interval."""

    value: float
    low: float
    high: float
    p: float
    """Two-sided p-value of no difference, of this comparison alone."""
    adjusted: float
    """The p-value adjusted for the family of comparisons that it is reported in; `p` itself outside of a family."""
    level: float
    """The largest adjusted p-value of a difference: 1 minus the confidence."""
    lower_is_better: bool = False

    @property
    def verdict(self) -> str:
        """`better` or `worse` by the adjusted p-value, else `within noise`; `undefined` without an interval."""
        if np.isnan(self.value) or np.isnan(self.low):
            return "undefined"
        if self.adjusted > self.level:
            return "within noise"
        return "better" if (self.value < 0) == self.lower_is_better else "worse"

    @property
    def numbers(self) -> dict[str, float]:
        """The difference, the ends of its interval and the p-value by name, as a file stores them."""
        return {"value": self.value, "low": self.low, "high": self.high, "p": self.p}

    @property
    def reversed(self) -> "Interval":
        """The same difference the other way round."""
        return replace(self, value=-self.value, low=-self.high, high=-self.low)


class Ranking:
    """Rows sorted by score, to compute the AUC under any weights of the rows.

    Args:
        scores: higher for positives, (N,).
        positive: whether the label is 1, (N,).
    """

    def __init__(self, scores: Floats, positive: NDArray[np.bool_]) -> None:
        self.order = np.argsort(scores, kind="stable")
        ordered = scores[self.order]
        self.positive = positive[self.order]
        self.begins = _runs(ordered, self.positive) if len(scores) else np.empty(0, dtype=np.int64)

    def auc(self, weights: Floats | Ints) -> float:
        """Weighted share of (negative, positive) pairs in the right order, a tie counting half; NaN without pairs.

        Args:
            weights: of the rows, in the order of `order`, (N,).
        """
        if not len(self.order):
            return np.nan
        positives = np.add.reduceat(weights * self.positive, self.begins)
        negatives = np.add.reduceat(weights, self.begins).astype(np.float64) - positives
        pairs = positives.sum() * negatives.sum()
        below = np.cumsum(negatives) - negatives
        return float((positives * (below + negatives / 2)).sum() / pairs) if pairs else np.nan


def _runs(ordered: Floats, positive: NDArray[np.bool_]) -> Ints:
    """Where runs of rows begin that need no order among themselves: those of one label, or of one score with both.

    Args:
        ordered: scores in ascending order, (N,), N > 0.
        positive: their labels, (N,).
    """
    begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    positives, rows = np.add.reduceat(positive.astype(np.int64), begins), np.diff(begins, append=len(ordered))
    both = (positives > 0) & (positives < rows)
    label = positives > 0
    return begins[np.append(True, (label[1:] != label[:-1]) | both[1:] | both[:-1])]


def auc_of(scores: Floats, positive: NDArray[np.bool_], user: Ints, weights: Floats | None = None) -> Measure:
    """The AUC of N rows, each counted as often as its user is drawn, times its weight.

    Args:
        scores: higher for positives, (N,).
        positive: whether the label is 1, (N,).
        user: the user of each row, numbered from 0, (N,).
        weights: of the rows, above 0, (N,); 1 if left out.
    """
    ranking = Ranking(scores, positive)
    user_by_score = user[ranking.order]
    if weights is None:
        return lambda draws: ranking.auc(draws[user_by_score])
    by_score = weights[ranking.order]
    return lambda draws: ranking.auc(draws[user_by_score] * by_score)


def gauc_of(scores: Floats, positive: NDArray[np.bool_], user: Ints, weights: Floats | None = None) -> Measure:
    """The mean of the AUCs of the drawn users with labels of both kinds, by the weights of their rows; see `auc_of`."""
    order = np.lexsort((scores, user))
    by_user, ordered, label = user[order], scores[order], positive[order]
    amounts = np.ones(len(order)) if weights is None else weights[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (by_user[1:] != by_user[:-1]) | (ordered[1:] != ordered[:-1])
    # Equal scores of a user form one run.
    run, of_user = np.cumsum(begins) - 1, by_user[begins]
    positives, negatives = (np.bincount(run, amounts * each) for each in (label, ~label))
    all_positives, all_negatives = (np.bincount(of_user, each) for each in (positives, negatives))
    users_before = np.cumsum(all_negatives) - all_negatives
    below = np.cumsum(negatives) - negatives - users_before[of_user]
    right = np.bincount(of_user, positives * (below + negatives / 2))
    both = (all_positives > 0) & (all_negatives > 0)
    aucs = right[both] / (all_positives * all_negatives)[both]
    total = all_positives + all_negatives

    def measure(draws: Ints) -> float:
        drawn = draws[: len(total)][both] * total[both]
        return float((drawn * aucs).sum() / drawn.sum()) if drawn.sum() else np.nan

    return measure


def logloss_of(scores: Floats, positive: NDArray[np.bool_], user: Ints, weights: Floats | None = None) -> Measure:
    """The mean cross entropy of the rows, in nats; scores are probabilities. See `auc_of`."""
    right = np.where(positive, scores, 1 - scores)
    # In float64 a probability above 1 - 1e-16 is 1.
    return mean_of(-np.log(right.clip(min=1e-16)), user, weights)


def mean_of(values: Floats, user: Ints, weights: Floats | None = None) -> Measure:
    """The mean of the rows' values, (N,); see `auc_of`. A draw takes no more than a sum over the users."""
    sums, rows = np.bincount(user, values if weights is None else values * weights), np.bincount(user, weights)

    def measure(draws: Ints) -> float:
        drawn = draws[: len(rows)]
        return float((drawn * sums).sum() / (drawn * rows).sum()) if (drawn * rows).any() else np.nan

    return measure


@dataclass(frozen=True)
class UserCounts:
    """How many users have labels of each kind in some rows."""

    positives: int
    """Users with a positive."""
    negatives: int
    """Users with a negative."""
    both: int
    """Users with a positive and a negative."""

    @classmethod
    def count(cls, positive: NDArray[np.bool_], user: Ints) -> "UserCounts":
        """Counts the users of N rows.

        Args:
            positive: whether the label is 1, (N,).
            user: the user of each row, numbered from 0, (N,).
        """
        rows, positives = np.bincount(user), np.bincount(user, positive)
        has, lacks = positives > 0, positives < rows
        return cls(int(has.sum()), int((lacks & (rows > 0)).sum()), int((has & lacks).sum()))


@dataclass(frozen=True)
class LabelUsers:
    """How many users tell labels of any kind apart."""

    others: int
    """Users with a label other than v, for the v of which they are fewest. Of labels 0 and 1 these are the users with a
    positive, or those with a negative, whichever are fewer."""
    mixed: int
    """Users with two different labels."""

    @classmethod
    def count(cls, labels: Floats | NDArray[np.bool_], user: Ints) -> "LabelUsers":
        """Counts the users of N rows.

        Args:
            labels: (N,).
            user: the user of each row, numbered from 0, (N,).
        """
        owner, label = different_labels(labels, user)
        number = np.bincount(owner)
        with_one_alone = np.bincount(label[number[owner] == 1], minlength=1)
        return cls(int((number > 0).sum() - with_one_alone.max()), int((number > 1).sum()))


def different_labels(labels: Floats | NDArray[np.bool_], user: Ints) -> tuple[Ints, Ints]:
    """Each user and label that go together, once: the users (D,), ascending, and the labels (D,), numbered from 0."""
    distinct, rank = np.unique(labels, return_inverse=True)
    return np.divmod(np.unique(user * len(distinct) + rank), max(len(distinct), 1))
