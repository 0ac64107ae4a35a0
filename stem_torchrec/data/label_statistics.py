"""What the labels of a split are like, exact over all of its files: where the outputs of numbers and levels start."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.data.columns import Columns
from stem_torchrec.data.label_kinds import labeled_rows
from stem_torchrec.data.listing import RowGroup


def mean_and_deviation(row_groups: Sequence[RowGroup], columns: Columns, label: str) -> tuple[float, float]:
    """The mean and the standard deviation of a label that is a number; 0 and 1 without a label, (x, 1) if all are x.

    Missing labels, those outside of the task's space and those that weigh 0 are left out; the others count the same.
    Reads the column with one row group in memory. A label that is not finite breaks the schema, and is left out;
    whoever reads the row reports it.

    Example::

        # watch_time   1   null   5   3
        mean_and_deviation(row_groups, columns, "watch_time")  # (3.0, 1.632...)
    """
    parts = [(len(each), float(each.mean()), float(each.var())) for each in _labels(row_groups, columns, label)]
    total = sum(count for count, _, _ in parts)
    if not total:
        return 0.0, 1.0
    # Mean and variance of each row group, then of these: a large mean costs no digits of the deviation.
    mean = math.fsum(count * of_part for count, of_part, _ in parts) / total
    square = math.fsum(count * (var + (of_part - mean) ** 2) for count, of_part, var in parts) / total
    return mean, math.sqrt(square) or 1.0


def log_odds_above(row_groups: Sequence[RowGroup], columns: Columns, label: str) -> tuple[float, ...]:
    """ln(P / (1 - P)) for the share P of labels above k, for each level k of an ordinal label but the last.

    Each side counts half a label more than it has, so that a level that does not occur has finite odds. See
    `mean_and_deviation` for what is left out.
    """
    levels = columns.levels[label]
    counts = np.zeros(levels, np.int64)
    for labels in _labels(row_groups, columns, label):
        known = labels[(labels >= 0) & (labels < levels) & (labels == np.floor(labels))]
        counts += np.bincount(known.astype(np.int64), minlength=levels)
    below = counts.cumsum()[:-1]
    return tuple(np.log((counts.sum() - below + 0.5) / (below + 0.5)).tolist())


def _labels(row_groups: Sequence[RowGroup], columns: Columns, label: str) -> Iterator[NDArray[np.float64]]:
    """The finite labels of each row group that has some."""
    for row_group in row_groups:
        labels = labeled_rows(row_group, columns, label)["label"].to_numpy().astype(np.float64)
        finite = labels[np.isfinite(labels)]
        if len(finite):
            yield finite
