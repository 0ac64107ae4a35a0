"""The rows of a step that have a label for a task, on this rank and on all."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.metrics.collectives import gather

NO_GROUP = -1
"""The group of a row that is compared with no other."""


@dataclass(frozen=True)
class TaskRows:
    """N rows with a label for a task whose weight is above 0."""

    logits: Tensor
    """Shape (N,)."""
    labels: Tensor
    """0 or 1, shape (N,)."""
    weights: Tensor
    """Above 0, shape (N,)."""
    groups: Tensor
    """Integers, such as user ids, shape (N,); all 0 where all rows are compared."""

    def only(self, chosen: Tensor) -> "TaskRows":
        """Those of them for which `chosen` (N,) is true."""
        return TaskRows(self.logits[chosen], self.labels[chosen], self.weights[chosen], self.groups[chosen])

    def by_label(self) -> tuple["TaskRows", "TaskRows"]:
        """Those with the label 1, and those with the label 0."""
        positive = self.labels == 1
        return self.only(positive), self.only(~positive)


@dataclass(frozen=True)
class StepRows:
    """The rows of a task in a step, of which a rank's loss is a function."""

    own: TaskRows
    """Of this rank; the logits have gradients."""
    of_ranks: Sequence[TaskRows]
    """Of each rank, the same on all; the logits have no gradients."""
    rank: int

    def everyone(self) -> TaskRows:
        """The rows of all ranks, without gradients."""
        parts = [(each.logits, each.labels, each.weights, each.groups) for each in self.of_ranks]
        return TaskRows(*map(torch.cat, zip(*parts, strict=True)))

    def logits(self) -> Tensor:
        """The logits of all ranks' rows, those of this rank with gradients."""
        others = [each.logits for each in self.of_ranks]
        return torch.cat([*others[: self.rank], self.own.logits, *others[self.rank + 1 :]])


def step_rows(logits: Tensor, labels: Tensor, weights: Tensor, groups: Tensor, *, over_ranks: bool) -> list[StepRows]:
    """The labeled rows of each task.

    A rank sends 12 bytes for each row and task, and 8 for the row's group. The choice of rows waits for a GPU.

    Args:
        logits: of this rank's rows, (B, T).
        labels: 0, 1 or NaN, (B, T).
        weights: of the labels, (B, T).
        groups: integers, (B,); rows of NO_GROUP are left out.
        over_ranks: whether all ranks make this call; else this rank's rows are all.
    """
    own = torch.stack([logits.detach(), labels, weights], dim=1)
    values, ids, rank = [own], [groups], 0
    if over_ranks and dist.is_initialized():
        sizes = gather(torch.tensor([len(own)], device=own.device)).flatten().tolist()
        values, ids, rank = _of_ranks(own, sizes), _of_ranks(groups, sizes), dist.get_rank()

    def labeled(logits: Tensor, columns: Tensor, groups: Tensor) -> TaskRows:
        labels, weights = columns[:, 1], columns[:, 2]
        chosen = ~labels.isnan() & (weights > 0) & (groups != NO_GROUP)
        return TaskRows(logits, labels, weights, groups).only(chosen)

    return [
        StepRows(
            labeled(logits[:, task], own[:, :, task], groups),
            [labeled(each[:, 0, task], each[:, :, task], of_rows) for each, of_rows in zip(values, ids, strict=True)],
            rank,
        )
        for task in range(logits.shape[1])
    ]


def _of_ranks(values: Tensor, sizes: list[int]) -> list[Tensor]:
    """The `values` of all ranks, each with its number of rows."""
    padded = values.new_zeros(max(sizes), *values.shape[1:])
    padded[: len(values)] = values
    return [of_rank[:size] for of_rank, size in zip(gather(padded), sizes, strict=True)]
