"""Differences between two models with paired bootstrap intervals over users and seeds.

All models predict the same rows, so every draw of users is applied to all of them, and what makes a user easy or hard
for both cancels in the difference. The same holds for a draw of seeds, which share the order of training rows.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Measure = Callable[[Ints], float]
"""A metric of fixed rows as a function of how often each user is drawn, (U,)."""

MIN_USERS = 20
"""Without this many users with a positive, and as many with a negative, there is no interval: a bootstrap of so few
users repeats the accident of which users they are. On 300 simulated logs of 150 users without a difference a 95 %
interval excluded 0 in 21 % with 3 users behind the positives, 16 % with 5, 13 % with 10 and 7 to 9 % with 20 to 50."""


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
        # Equal scores form one run.
        begins = np.ones(len(scores), dtype=bool)
        begins[1:] = ordered[1:] != ordered[:-1]
        self.begins = np.flatnonzero(begins)

    def auc(self, weights: Floats | Ints) -> float:
        """Weighted share of (negative, positive) pairs in the right order, a tie counting half; NaN without pairs.

        Args:
            weights: of the rows, in the order of `order`, (N,).
        """
        if not len(self.order):
            return np.nan
        positives = weights * self.positive
        negatives = (weights - positives).astype(np.float64)
        if len(self.begins) < len(self.order):
            positives, negatives = (np.add.reduceat(each, self.begins) for each in (positives, negatives))
        pairs = positives.sum() * negatives.sum()
        below = np.cumsum(negatives) - negatives
        return float((positives * (below + negatives / 2)).sum() / pairs) if pairs else np.nan


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
    loss = -np.log(right.clip(min=1e-16))
    losses, rows = np.bincount(user, loss if weights is None else loss * weights), np.bincount(user, weights)

    def measure(draws: Ints) -> float:
        drawn = draws[: len(rows)]
        return float((drawn * losses).sum() / (drawn * rows).sum()) if (drawn * rows).any() else np.nan

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
class Resampled:
    """A measure of several models over the same rows, and over draws of their users."""

    whole: Mapping[str, float]
    """By model, the measure over all users, mean over the seeds."""
    drawn: Mapping[str, Floats]
    """By model, the measure of each draw, mean over its seeds; the same draws for all models."""
    confidence: float
    lower_is_better: bool = False

    def difference(self, model: str, over: str) -> Interval:
        """`model` minus the model `over`, with the percentile interval over the draws and the p-value of the same.

        The p-value is twice the share of draws on the other side of 0, with the measured rows counted as one more draw
        (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, ch. 4). So B draws give no p-value below
        2 / (B + 1), and never 0.
        """
        differences = self.drawn[model] - self.drawn[over]
        # A draw without a positive, for a rare task, has no AUC.
        known = differences[~np.isnan(differences)]
        tail = (1 - self.confidence) / 2
        low, high, p = np.nan, np.nan, np.nan
        if len(known):
            low, high = np.quantile(known, [tail, 1 - tail]).tolist()
            p = min(1.0, 2 * (1 + min(int((known <= 0).sum()), int((known >= 0).sum()))) / (len(known) + 1))
        value = self.whole[model] - self.whole[over]
        # Rounded, or the level of 95 % would be a little more than 5 %.
        return Interval(value, low, high, p, p, round(1 - self.confidence, 12), self.lower_is_better)


def resample(
    measures: Mapping[str, Sequence[Measure]],
    users: int,
    *,
    resamples: int,
    confidence: float,
    lower_is_better: bool = False,
) -> Resampled:
    """Measures models over draws of users and seeds.

    The bootstrap of Efron and Tibshirani ("An Introduction to the Bootstrap", 1993, ch. 13): a draw takes as many users
    as there are, with replacement, with all rows of each, and as many seeds as there are. With few seeds the interval
    underestimates their spread, with one seed it leaves it out. With fewer than two users there are no draws, and so no
    intervals.

    Args:
        measures: by model, one for each seed; all have the same order of seeds and the same rows.
        users: number of users.
        resamples: number of draws.
        confidence: share of the draws that an interval covers.
        lower_is_better: whether a negative difference is an advantage.
    """
    seeds = len(next(iter(measures.values())))

    def means(draws: Ints, seed_of: Sequence[int] | Ints) -> dict[str, float]:
        times = Counter(int(i) for i in seed_of)
        return {
            model: sum(n * by_seed[i](draws) for i, n in times.items()) / len(seed_of)
            for model, by_seed in measures.items()
        }

    whole = means(np.ones(users, dtype=np.int64), range(seeds))
    generator = np.random.default_rng(0)
    drawn = []
    for _ in tqdm(range(resamples if users > 1 else 0), desc="draws of users", leave=False, disable=None):
        draws = np.bincount(generator.integers(users, size=users), minlength=users)
        drawn.append(means(draws, generator.integers(seeds, size=seeds)))
    by_model = {model: np.array([draw[model] for draw in drawn]) for model in measures}
    return Resampled(whole, by_model, confidence, lower_is_better)
