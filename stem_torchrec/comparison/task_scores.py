"""The predictions of several models for the same rows of a task, compared over draws of their users."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.comparison.intervals import (
    MIN_USERS,
    Floats,
    Ints,
    LabelUsers,
    Measure,
    auc_of,
    different_labels,
    gauc_of,
    logloss_of,
)
from stem_torchrec.comparison.resampling import Measures, Resampled, RowsOfLog, resample, resample_logs
from stem_torchrec.comparison.value_measures import mae_of, ordered_auc_of, ordered_gauc_of, pairs_of, rmse_of

_OF_BINARY: Mapping[str, Callable[..., Measure]] = {"AUC": auc_of, "gAUC": gauc_of, "logloss": logloss_of}
_OF_VALUES: Mapping[str, Callable[..., Measure]] = {
    "AUC": ordered_auc_of,
    "gAUC": ordered_gauc_of,
    "RMSE": rmse_of,
    "MAE": mae_of,
}
LOWER_IS_BETTER = ("logloss", "RMSE", "MAE")


def measures_of(*, grouped: bool, binary: bool = True) -> dict[str, Callable[..., Measure]]:
    """What models are compared by, gAUC only on a log with a group column.

    Args:
        grouped: whether the log has a group column.
        binary: whether the labels of the task are 0 and 1, not numbers or levels.
    """
    measures = _OF_BINARY if binary else _OF_VALUES
    return {name: measure for name, measure in measures.items() if grouped or name != "gAUC"}


def labeled(
    labels: NDArray[np.floating],
    weights: NDArray[np.floating] | None,
    users: Ints,
    rows: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], Floats, Ints]:
    """Selects the rows that have a label whose weight is not 0, of `rows` (N,) if given.

    Returns which rows have one (N,); and for the M that do, the label (M,) and the user, numbered from 0 (M,).

    Args:
        labels: of a task, NaN where missing, (N,).
        weights: of the labels, (N,).
        users: any number for each user, (N,).
        rows: to select among, (N,).
    """
    known = ~np.isnan(labels)
    if weights is not None:
        known &= weights > 0
    if rows is not None:
        known &= rows
    return known, labels[known].astype(np.float64), np.unique(users[known], return_inverse=True)[1]


@dataclass(frozen=True)
class TaskScores:
    """The M rows that `labeled` selects, with the predictions of every model."""

    labels: NDArray[np.bool_] | Floats
    """Whether the label is 1, or the number or level, (M,)."""
    user: Ints
    """Numbered from 0, (M,)."""
    weights: Floats | None
    """Of the labels, above 0, (M,)."""
    scores: Mapping[str, Sequence[Floats]]
    """Predictions (M,) by model, for each seed: probabilities, or numbers."""
    binary: bool = True
    """Whether the labels are 0 and 1."""

    def resample(self, measure: str, *, draws: int, confidence: float) -> Resampled:
        """Measures every model over the rows and over draws of their users.

        Without draws, and so without intervals, if too few users tell labels apart; see `MIN_USERS`.

        Args:
            measure: of `measures_of`.
            draws: of users.
            confidence: share of the draws that an interval covers.
        """
        enough = _enough_users(LabelUsers.count(self.labels, self.user), measure)
        return resample(
            self.measures_of(measure),
            int(self.user.max(initial=-1)) + 1,
            resamples=draws if enough else 0,
            confidence=confidence,
            lower_is_better=measure in LOWER_IS_BETTER,
        )

    def measures_of(self, measure: str) -> Measures:
        of_rows = measures_of(grouped=True, binary=self.binary)[measure]
        return {
            model: [of_rows(scores, self.labels, self.user, self.weights) for scores in by_seed]
            for model, by_seed in self.scores.items()
        }

    def weight_of(self, measure: str) -> float:
        """What the rows count among those of other logs: pairs of labels for AUC, rows for the others."""
        amounts = np.ones(len(self.user)) if self.weights is None else self.weights
        if measure == "AUC":
            return pairs_of(np.bincount(np.unique(self.labels, return_inverse=True)[1], amounts))
        if measure != "gAUC":
            return float(amounts.sum())
        owner, _ = different_labels(self.labels, self.user)
        mixed = np.bincount(owner) > 1
        return float(amounts[mixed[self.user]].sum())


def resample_together(logs: Sequence[TaskScores], measure: str, *, draws: int, confidence: float) -> Resampled:
    """Measures every model over the rows of several logs and over draws of their users; see `resample_logs`.

    A log counts by its pairs of different labels for AUC, by the rows of users with two labels for gAUC, and by its
    rows for the others.

    Args:
        logs: of each log its rows, whose users are numbered over all logs.
        measure: of `measures_of`.
        draws: of users.
        confidence: share of the draws that an interval covers.
    """
    labels, user = (np.concatenate(each) for each in zip(*((log.labels, log.user) for log in logs), strict=True))
    of_logs = [RowsOfLog(log.measures_of(measure), log.weight_of(measure)) for log in logs]
    # A log without a pair has no AUC, and counts nothing.
    counting = [log for log in of_logs if log.weight > 0] or [RowsOfLog(log.measures, 1.0) for log in of_logs]
    return resample_logs(
        counting, int(user.max(initial=-1)) + 1,
        resamples=draws if _enough_users(LabelUsers.count(labels, user), measure) else 0,
        confidence=confidence, lower_is_better=measure in LOWER_IS_BETTER,
    )  # fmt: skip


def _enough_users(users: LabelUsers, measure: str) -> bool:
    return (users.mixed if measure == "gAUC" else users.others) >= MIN_USERS
