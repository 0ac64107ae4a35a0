"""A chunk of an evaluation's rows, for one task: sums, and the rows sorted as AUC and gAUC need them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stem_torchrec.metrics.auc import by_group, by_score
from stem_torchrec.metrics.sorted_rows import SortedRows


@dataclass(frozen=True)
class TaskChunk:
    """Some of this rank's rows that have a label for a task, in memory or on disk."""

    sums: Tensor
    """Sums of losses and predictions; counts of labels 1, labels 0, NaN logits and rows; and if rows have weights, by
    which losses and predictions count, the sums of the weights of labels 1 and of all. Shape (6,) or (8,), float64."""
    by_score: SortedRows
    by_group: SortedRows

    @classmethod
    def sort(
        cls,
        logits: Tensor,
        labels: Tensor,
        groups: Tensor,
        file: Path | None = None,
        *,
        weights: Tensor | None = None,
    ) -> "TaskChunk":
        """Sums up and sorts rows.

        Args:
            logits: shape (N,).
            labels: 0 or 1, shape (N,).
            groups: integers, such as user ids, shape (N,).
            file: the sorted rows are written to files whose names begin with it; without it they stay in memory.
            weights: above 0, shape (N,), in all chunks or in none.
        """
        positive = labels == 1
        wide = logits.double()
        # -logsigmoid is exact for any logit; softplus becomes linear at 20, with an error of 2e-9.
        losses, predictions = -torch.nn.functional.logsigmoid(torch.where(positive, wide, -wide)), wide.sigmoid()
        of_weights = []
        if weights is not None:
            amounts = weights.double()
            losses, predictions = losses * amounts, predictions * amounts
            of_weights = [(amounts * positive).sum(), amounts.sum()]
        # Counts are exact in float64 up to 9e15.
        counts = [positive.sum(), (labels == 0).sum(), logits.isnan().sum()]
        sums = torch.stack([losses.sum(), predictions.sum(), *(count.double() for count in counts)])
        return cls(
            torch.cat([sums, sums.new_tensor([len(labels)]), *(each[None] for each in of_weights)]),
            by_score(logits, positive, file and file.with_name(f"{file.name}-score"), weights=weights),
            by_group(groups, logits, positive, file and file.with_name(f"{file.name}-group"), weights=weights),
        )
