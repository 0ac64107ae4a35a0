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
    Resampled,
    UserCounts,
    auc_of,
    gauc_of,
    logloss_of,
    resample,
)

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
        counts = UserCounts.count(self.positive, self.user)
        fewest = counts.both if measure == "gAUC" else min(counts.positives, counts.negatives)
        of_rows = _MEASURES[measure]
        return resample(
            {
                model: [of_rows(scores, self.positive, self.user, self.weights) for scores in by_seed]
                for model, by_seed in self.scores.items()
            },
            int(self.user.max(initial=-1)) + 1,
            resamples=draws if fewest >= MIN_USERS else 0,
            confidence=confidence,
            lower_is_better=measure == "logloss",
        )
