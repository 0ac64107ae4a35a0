"""What an evaluation keeps of some rows for a task: sums, and the rows in the orders that AUC and gAUC need."""

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
    """Of their losses, predictions, labels 1, labels 0, undefined logits, and rows, (6,) float64."""
    by_score: SortedRows
    by_group: SortedRows

    @classmethod
    def sort(cls, logits: Tensor, labels: Tensor, groups: Tensor, file: Path | None = None) -> "TaskChunk":
        """Of rows of shape (N,), which go to files that begin as `file` does, if it is given."""
        positive = labels == 1
        wide = logits.double()
        # -logsigmoid is exact at any size; softplus turns linear at 20, an error of 2e-9.
        loss = -torch.nn.functional.logsigmoid(torch.where(positive, wide, -wide)).sum()
        # Counts are exact in float64 up to 9e15.
        counts = [positive.sum(), (labels == 0).sum(), logits.isnan().sum()]
        sums = torch.stack([loss, wide.sigmoid().sum(), *(count.double() for count in counts)])
        return cls(
            torch.cat([sums, sums.new_tensor([len(labels)])]),
            by_score(logits, positive, file and file.with_name(f"{file.name}-score")),
            by_group(groups, logits, positive, file and file.with_name(f"{file.name}-group")),
        )
