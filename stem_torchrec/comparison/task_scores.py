"""The predictions of several models for the same rows of a task, compared over draws of their users."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.comparison.intervals import (
    MIN_USERS,
    Floats,
    Ints,
    Measure,
    UserCounts,
    auc_of,
    gauc_of,
    logloss_of,
)
from stem_torchrec.comparison.resampling import Measures, Resampled, RowsOfLog, resample, resample_logs

_MEASURES: Mapping[str, Callable[..., Measure]] = {"AUC": auc_of, "gAUC": gauc_of, "logloss": logloss_of}


def measures_of(*, grouped: bool) -> dict[str, Callable[..., Measure]]:
    """What models are compared by, gAUC only on a log with a group column."""
    return {name: measure for name, measure in _MEASURES.items() if grouped or name != "gAUC"}


def labeled(
    labels: NDArray[np.floating],
    weights: NDArray[np.floating] | None,
    users: Ints,
    rows: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Ints]:
    """Selects the rows that have a label whose weight is not 0, of `rows` (N,) if given.

    Returns which rows have one (N,); and for the M that do, whether the label is 1 (M,) and the user, numbered from 0
    (M,).

    Args:
        labels: 0, 1 or NaN, (N,).
        weights: of the labels, (N,).
        users: any number for each user, (N,).
        rows: to select among, (N,).
    """
    known = ~np.isnan(labels)
    if weights is not None:
        known &= weights > 0
    if rows is not None:
        known &= rows
    return known, labels[known] == 1, np.unique(users[known], return_inverse=True)[1]


@dataclass(frozen=True)
class TaskScores:
    """The M rows that `labeled` selects, with the predictions of every model."""

    positive: NDArray[np.bool_]
    """Whether the label is 1, (M,)."""
    user: Ints
    """Numbered from 0, (M,)."""
    weights: Floats | None
    """Of the labels, above 0, (M,)."""
    scores: Mapping[str, Sequence[Floats]]
    """Probabilities (M,) by model, for each seed."""

    def resample(self, measure: str, *, draws: int, confidence: float) -> Resampled:
        """Measures every model over the rows and over draws of their users.

        Without draws, and so without intervals, if too few users have labels of a kind; see `MIN_USERS`.

        Args:
            measure: of `measures_of`.
            draws: of users.
            confidence: share of the draws that an interval covers.
        """
        enough = _enough_users(UserCounts.count(self.positive, self.user), measure)
        return resample(
            self.measures_of(measure),
            int(self.user.max(initial=-1)) + 1,
            resamples=draws if enough else 0,
            confidence=confidence,
            lower_is_better=measure == "logloss",
        )

    def measures_of(self, measure: str) -> Measures:
        of_rows = _MEASURES[measure]
        return {
            model: [of_rows(scores, self.positive, self.user, self.weights) for scores in by_seed]
            for model, by_seed in self.scores.items()
        }

    def weight_of(self, measure: str) -> float:
        """What the rows count among those of other logs: pairs of labels for AUC, rows for the others."""
        amounts = np.ones(len(self.user)) if self.weights is None else self.weights
        positives, total = float(amounts[self.positive].sum()), float(amounts.sum())
        if measure == "AUC":
            return positives * (total - positives)
        if measure != "gAUC":
            return total
        kinds = [np.bincount(self.user[each], minlength=1) for each in (self.positive, ~self.positive)]
        both = np.zeros(int(self.user.max(initial=0)) + 1, dtype=bool)
        shorter = min(map(len, kinds))
        both[:shorter] = (kinds[0][:shorter] > 0) & (kinds[1][:shorter] > 0)
        return float(amounts[both[self.user]].sum())


def resample_together(logs: Sequence[TaskScores], measure: str, *, draws: int, confidence: float) -> Resampled:
    """Measures every model over the rows of several logs and over draws of their users; see `resample_logs`.

    A log counts by its pairs of labels for AUC, by the rows of users with both for gAUC, and by its rows for logloss.

    Args:
        logs: of each log its rows, whose users are numbered over all logs.
        measure: of `measures_of`.
        draws: of users.
        confidence: share of the draws that an interval covers.
    """
    positive, user = (np.concatenate(each) for each in zip(*((log.positive, log.user) for log in logs), strict=True))
    of_logs = [RowsOfLog(log.measures_of(measure), log.weight_of(measure)) for log in logs]
    # A log without a pair has no AUC, and counts nothing.
    counting = [log for log in of_logs if log.weight > 0] or [RowsOfLog(log.measures, 1.0) for log in of_logs]
    return resample_logs(
        counting, int(user.max(initial=-1)) + 1,
        resamples=draws if _enough_users(UserCounts.count(positive, user), measure) else 0,
        confidence=confidence, lower_is_better=measure == "logloss",
    )  # fmt: skip


def _enough_users(counts: UserCounts, measure: str) -> bool:
    return (counts.both if measure == "gAUC" else min(counts.positives, counts.negatives)) >= MIN_USERS
