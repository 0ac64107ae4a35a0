"""The AUC of rows that one process has in memory, for those who draw a log or look at one."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pair_auc(scores: NDArray[np.floating], labels: NDArray[np.integer | np.floating]) -> float:
    """The share of pairs of a positive and a negative that `scores` put in order; a tie counts half.

    Args:
        scores: of rows, shape (N,).
        labels: 0 and 1, both of them, shape (N,).

    Example::

        pair_auc(np.array([0.1, 0.4, 0.4]), np.array([0, 0, 1]))  # 0.75
    """
    _, place = np.unique(scores, return_inverse=True)
    positives, negatives = np.bincount(place, labels), np.bincount(place, 1 - labels)
    return float(positives @ (np.cumsum(negatives) - negatives / 2) / positives.sum() / negatives.sum())


def pair_aucs(tasks: Sequence[str], scores: NDArray[np.floating], labels: NDArray[np.integer]) -> dict[str, float]:
    """The AUC of each task, without those whose labels are all alike.

    Args:
        tasks: T names.
        scores: of rows, shape (T, N).
        labels: 0 and 1, or negative where a row has none, shape (T, N).
    """
    aucs = {}
    for task, of_rows, label in zip(tasks, scores, labels, strict=True):
        known = label >= 0
        if 0 < label[known].sum() < known.sum():
            aucs[task] = pair_auc(of_rows[known], label[known])
    return aucs
