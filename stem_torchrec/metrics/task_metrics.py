"""The metrics of one task, from the chunks of rows that all ranks have."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stem_torchrec.metrics.auc import GroupedAUC, auc_over_ranks, grouped_auc_over_ranks
from stem_torchrec.metrics.collectives import gather
from stem_torchrec.metrics.task_chunk import TaskChunk
from stem_torchrec.runtime.errors import UserError


@dataclass(frozen=True)
class TaskMetrics:
    """Metrics of one task's predictions; NaN if the rows leave a metric undefined.

    y is a label, p the prediction: sigmoid(logit), or of a number or a level its expectation. Rows without a label for
    the task are left out. If rows have weights, a pair of rows counts the product of theirs in AUC and gAUC, means and
    sums are weighted, and rows that weigh 0 are left out.
    """

    auc: float
    """Share of pairs of rows with different labels that the predictions order rightly, a tie counting half: of labels
    0 and 1 the (negative, positive) pairs, of numbers and levels XAUC (Zhan et al., KDD 2022)."""

    gauc: float
    """Mean AUC of the users that have two different labels, weighted by their rows (Zhu et al., KDD 2017)."""

    logloss: float
    """-mean(y ln p + (1 - y) ln(1 - p)), in nats."""

    ne: float
    """Normalized entropy: logloss over that of always predicting mean(y) (He et al., ADKDD 2014, eq. 1)."""

    pcoc: float
    """Predicted over observed click-through rate: sum(p) / sum(y), of numbers as well."""

    rows: int
    """Rows with a label for this task."""

    positives: int
    """Rows whose label is 1, or above 0 if it is a number or a level."""

    gauc_groups: int
    """Groups (users) that have two different labels."""

    gauc_rows: int
    """Rows of those groups."""

    rmse: float | None = None
    """Root of the mean squared error, in the units of the label, of numbers and levels; None for a binary task."""

    mae: float | None = None
    """Mean absolute error, likewise."""

    @property
    def has_diverged(self) -> bool:
        """Whether some prediction is not a number."""
        return self.rows > 0 and math.isnan(self.logloss if self.rmse is None else self.rmse)


def compute_task(task: str, chunks: Sequence[TaskChunk], has_groups: bool, rows_at_once: int) -> TaskMetrics:
    """The metrics of a task over all ranks' rows, the same on all ranks, which all call it.

    Args:
        task: its name, for errors.
        chunks: this rank's rows; one chunk or more, which may be empty.
        has_groups: whether the rows of all ranks have groups.
        rows_at_once: about as many rows of a rank are in memory.

    Raises UserError for a label that is neither 0 nor 1, on all ranks.
    """
    sums = summed_over_ranks([chunk.sums for chunk in chunks])
    loss_sum, prediction_sum, positives, negatives, undefined, rows, *weights = sums.tolist()
    of_positives, of_all = weights or (positives, rows)
    if positives + negatives != rows:
        raise UserError(
            f"task {task!r} has {int(rows - positives - negatives)} labels that are neither 0 nor 1; "
            "metrics need binary labels, with NaN for a missing one"
        )
    # These sums are the same on all ranks, so all of them take part in the exchanges below, or none does.
    exact_auc, grouped = math.nan, GroupedAUC(value=math.nan, groups=0, rows=0)
    if positives and negatives and not undefined:
        exact_auc = auc_over_ranks([chunk.by_score for chunk in chunks], rows_at_once)
        if has_groups:
            grouped = grouped_auc_over_ranks([chunk.by_group for chunk in chunks], rows_at_once)
    logloss = loss_sum / of_all if rows else math.nan
    return TaskMetrics(
        auc=exact_auc,
        gauc=grouped.value,
        logloss=logloss,
        ne=logloss / _entropy(of_positives / of_all) if positives and negatives else math.nan,
        pcoc=prediction_sum / of_positives if positives else math.nan,
        rows=int(rows),
        positives=int(positives),
        gauc_groups=grouped.groups,
        gauc_rows=grouped.rows,
    )


def summed_over_ranks(sums: Sequence[Tensor]) -> Tensor:
    """The sums of all chunks of all ranks, (S,) of this rank's, each (S,); all ranks call it."""
    # fsum rounds once, so the order of the ranks does not matter.
    return _fsum(gather(_fsum(torch.stack(list(sums)))))


def _fsum(rows: Tensor) -> Tensor:
    """The sum of each column."""
    return rows.new_tensor([math.fsum(column) for column in rows.T.tolist()])


def _entropy(rate: float) -> float:
    return -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)
