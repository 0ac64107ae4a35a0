"""Draws of users and seeds: the bootstrap behind each interval and p-value, over the rows of one log or of several."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from stem_torchrec.comparison.intervals import Floats, Interval, Ints, Measure

Measures = Mapping[str, Sequence[Measure]]
"""By model, its measure for each seed; all have the same order of seeds and the same rows."""


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
    measures: Measures, users: int, *, resamples: int, confidence: float, lower_is_better: bool = False
) -> Resampled:
    """Measures models over draws of users and seeds.

    The bootstrap of Efron and Tibshirani ("An Introduction to the Bootstrap", 1993, ch. 13): a draw takes as many users
    as there are, with replacement, with all rows of each, and as many seeds as there are. With few seeds the interval
    underestimates their spread, with one seed it leaves it out. With fewer than two users there are no draws, and so no
    intervals.

    Args:
        measures: of the rows.
        users: number of users.
        resamples: number of draws.
        confidence: share of the draws that an interval covers.
        lower_is_better: whether a negative difference is an advantage.
    """
    return resample_logs(
        [RowsOfLog(measures, 1.0)], users,
        resamples=resamples, confidence=confidence, lower_is_better=lower_is_better,
    )  # fmt: skip


@dataclass(frozen=True)
class RowsOfLog:
    """Rows of one of several logs, each of which has trainings of its own."""

    measures: Measures
    """Over these rows, as functions of draws of the users of all logs."""
    weight: float
    """Of these rows in the mean over the logs."""


def resample_logs(
    logs: Sequence[RowsOfLog], users: int, *, resamples: int, confidence: float, lower_is_better: bool = False
) -> Resampled:
    """Measures models over draws of users and of the seeds of each log; see `resample`.

    The measure is the weighted mean of those of the logs, so no score of one training is compared with that of another.
    A user who is drawn counts as often in every log, and each log draws seeds of its own.

    Args:
        logs: the rows of each log.
        users: number of users over all logs.
        resamples: number of draws.
        confidence: share of the draws that an interval covers.
        lower_is_better: whether a negative difference is an advantage.
    """
    total = sum(log.weight for log in logs)
    seeds = [len(next(iter(log.measures.values()))) for log in logs]

    def means(draws: Ints, seeds_of: Sequence[Sequence[int] | Ints]) -> dict[str, float]:
        sums = dict.fromkeys(logs[0].measures, 0.0)
        for log, seed_of in zip(logs, seeds_of, strict=True):
            times = Counter(int(i) for i in seed_of)
            for model, by_seed in log.measures.items():
                sums[model] += log.weight * (sum(n * by_seed[i](draws) for i, n in times.items()) / len(seed_of))
        return {model: value / total for model, value in sums.items()}

    whole = means(np.ones(users, dtype=np.int64), [range(number) for number in seeds])
    generator = np.random.default_rng(0)
    drawn = []
    for _ in tqdm(range(resamples if users > 1 else 0), desc="draws of users", leave=False, disable=None):
        draws = np.bincount(generator.integers(users, size=users), minlength=users)
        drawn.append(means(draws, [generator.integers(number, size=number) for number in seeds]))
    by_model = {model: np.array([draw[model] for draw in drawn]) for model in logs[0].measures}
    return Resampled(whole, by_model, confidence, lower_is_better)
