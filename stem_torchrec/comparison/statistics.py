"""How much a difference between two models is worth: paired intervals over users and seeds.

All models predict the same rows, so a draw of users is the same draw for all of them, and what makes a user easy or
hard for both cancels in the difference. So is a draw of seeds, which share the order of training rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A difference and the interval that holds it."""

    value: float
    low: float
    high: float

    @property
    def says(self) -> str:
        """Better or worse where the interval leaves 0 out, else within noise."""
        if np.isnan(self.value) or np.isnan(self.low):
            return "undefined"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "within noise"


class Ranking:
    """Rows in the order of their scores, for AUCs of any weighting of the rows.

    Args:
        scores: higher for positives, (N,).
        positive: whether the label is 1, (N,).
    """

    def __init__(self, scores: Floats, positive: NDArray[np.bool_]) -> None:
        self.order = np.argsort(scores, kind="stable")
        ordered = scores[self.order]
        self.positive = positive[self.order]
        # Equal scores are one run.
        begins = np.ones(len(scores), dtype=bool)
        begins[1:] = ordered[1:] != ordered[:-1]
        self.begins = np.flatnonzero(begins)

    def auc(self, weights: Floats | Ints) -> float:
        """Share of weighted (negative, positive) pairs ordered rightly, a tie counting half; NaN without pairs."""
        if not len(self.order):
            return np.nan
        ordered = weights[self.order].astype(np.float64)
        positives = np.add.reduceat(np.where(self.positive, ordered, 0.0), self.begins)
        negatives = np.add.reduceat(np.where(self.positive, 0.0, ordered), self.begins)
        pairs = positives.sum() * negatives.sum()
        below = np.cumsum(negatives) - negatives
        return float((positives * (below + negatives / 2)).sum() / pairs) if pairs else np.nan


def auc_differences(
    scores: Mapping[str, Sequence[Floats]],
    positive: NDArray[np.bool_],
    users: Ints,
    *,
    base: str,
    resamples: int,
    confidence: float,
    seed: int = 0,
) -> dict[str, Interval]:
    """AUC of each model less that of `base`, the mean over seeds, with a percentile interval over draws.

    The bootstrap of Efron and Tibshirani ("An Introduction to the Bootstrap", 1993, ch. 13): a draw takes as many users
    as there are, with replacement, and all rows of each, and as many seeds as there are. Of few seeds the spread is
    drawn too small, of one not at all. With fewer than two users there is no interval.

    Args:
        scores: by model, an array (N,) for each seed, in the same order of seeds.
        positive: whether the label is 1, (N,).
        users: of each row, (N,).
        base: the model to compare with.
        resamples: draws.
        confidence: share of the draws that the interval holds.
        seed: of the draws.
    """
    rankings = {model: [Ranking(s, positive) for s in by_seed] for model, by_seed in scores.items()}
    _, user_of_row = np.unique(users, return_inverse=True)
    number = int(user_of_row.max()) + 1 if len(users) else 0

    seeds = len(scores[base])

    def aucs(weights: Floats | Ints, seed_of: Sequence[int] | Ints) -> dict[str, float]:
        drawn = {i: list(seed_of).count(i) for i in seed_of}
        return {
            model: sum(times * found[i].auc(weights) for i, times in drawn.items()) / len(seed_of)
            for model, found in rankings.items()
        }

    whole = aucs(np.ones(len(users)), range(seeds))
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {model: [] for model in scores}
    for _ in tqdm(range(resamples if number > 1 else 0), desc="draws of users", leave=False, disable=None):
        counts = np.bincount(generator.integers(number, size=number), minlength=number)
        here = aucs(counts[user_of_row], generator.integers(seeds, size=seeds))
        for model in scores:
            drawn[model].append(here[model] - here[base])
    found = {}
    for model, values in drawn.items():
        # A draw may hold no positive of a rare task; it has no AUC.
        known = [value for value in values if not np.isnan(value)]
        tail = (1 - confidence) / 2
        low, high = np.quantile(known, [tail, 1 - tail]) if known else (np.nan, np.nan)
        found[model] = Interval(whole[model] - whole[base], float(low), float(high))
    return found
