"""A chunk of an evaluation's rows, for one task whose labels are numbers or levels: sums, and the rows sorted."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stem_torchrec.metrics.auc import by_group
from stem_torchrec.metrics.sorted_rows import SortedRows


@dataclass(frozen=True)
class ValueChunk:
    """Some of this rank's rows that have a label for a task, in memory or on disk."""

    sums: Tensor
    """Sums of squared errors, absolute errors, predictions, labels and weights, each times the row's weight; counts of
    labels above 0, NaN predictions and rows. Shape (8,), float64."""
    by_score: SortedRows
    """With labels, and weights if rows have some."""
    by_label: SortedRows | None
    """With predictions, and weights if rows have some; None for levels."""
    by_group: SortedRows

    @classmethod
    def sort(
        cls,
        predictions: Tensor,
        labels: Tensor,
        groups: Tensor,
        file: Path | None = None,
        *,
        weights: Tensor | None = None,
        are_levels: bool = False,
    ) -> "ValueChunk":
        """Sums up and sorts rows.

        Args:
            predictions: shape (N,).
            labels: finite, shape (N,).
            groups: integers, such as user ids, shape (N,).
            file: the sorted rows are written to files whose names begin with it; without it they stay in memory.
            weights: above 0, shape (N,), in all chunks or in none.
            are_levels: whether the labels are of few levels.
        """
        values, of_labels = predictions.double(), labels.double()
        amounts = torch.ones_like(values) if weights is None else weights.double()
        error = values - of_labels
        weighed = [(each * amounts).sum() for each in (error.square(), error.abs(), values, of_labels)]
        counts = [(labels > 0).sum(), predictions.isnan().sum(), torch.tensor(len(labels), device=labels.device)]
        # Adding 0.0 turns -0.0 into 0.0, its equal, so that no sort can tell them apart.
        score, label = predictions + 0.0, labels + 0.0
        others = [] if weights is None else [weights]
        return cls(
            torch.stack([*weighed, amounts.sum(), *(count.double() for count in counts)]),
            SortedRows(score, label, *others, file=file and file.with_name(f"{file.name}-score")),
            None
            if are_levels
            else SortedRows(label, score, *others, file=file and file.with_name(f"{file.name}-label")),
            by_group(groups, score, label, file and file.with_name(f"{file.name}-group"), weights=weights),
        )
