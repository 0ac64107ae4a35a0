"""The metrics of a task whose labels are numbers or levels, from the chunks of rows that all ranks have."""

import math
from collections.abc import Sequence

import torch

from stem_torchrec.metrics.auc import GroupedAUC, grouped_auc_over_ranks
from stem_torchrec.metrics.ordered_pairs import pairs_between, pairs_of_numbers
from stem_torchrec.metrics.task_metrics import TaskMetrics, summed_over_ranks
from stem_torchrec.metrics.value_chunk import ValueChunk


def compute_values(
    chunks: Sequence[ValueChunk], levels: int | None, has_groups: bool, rows_at_once: int
) -> TaskMetrics:
    """The metrics of a task over all ranks' rows, the same on all ranks, which all call it.

    logloss and NE are NaN: they are of labels 0 and 1.

    Args:
        chunks: this rank's rows; one chunk or more, which may be empty.
        levels: number of levels of the labels; None for numbers.
        has_groups: whether the rows of all ranks have groups.
        rows_at_once: about as many rows of a rank are in memory.
    """
    sums = summed_over_ranks([chunk.sums for chunk in chunks])
    squares, errors, predictions, labels, weights, positives, undefined, rows = sums.tolist()
    auc, grouped = math.nan, GroupedAUC(value=math.nan, groups=0, rows=0)
    # The sums are the same on all ranks, so all of them take part in the exchanges below, or none does.
    if rows and not undefined:
        by_score = [chunk.by_score for chunk in chunks]
        by_label = [chunk.by_label for chunk in chunks if chunk.by_label is not None]
        if levels is None:
            auc = pairs_of_numbers(by_label, by_score, rows_at_once).share
        else:
            auc = pairs_between(by_score, lambda label: label.to(torch.int64), levels, rows_at_once).share
        if has_groups:
            grouped = grouped_auc_over_ranks([chunk.by_group for chunk in chunks], rows_at_once, are_numbers=True)
    return TaskMetrics(
        auc=auc,
        gauc=grouped.value,
        logloss=math.nan,
        ne=math.nan,
        pcoc=predictions / labels if labels else math.nan,
        rows=int(rows),
        positives=int(positives),
        gauc_groups=grouped.groups,
        gauc_rows=grouped.rows,
        rmse=math.sqrt(squares / weights) if rows else math.nan,
        mae=errors / weights if rows else math.nan,
    )
