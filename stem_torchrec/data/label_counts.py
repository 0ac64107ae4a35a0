"""How many labels each task has in a step, over all ranks: what the loss divides by, and which tasks train.

The numbers are summed up on the host by a process group of their own, while the pipeline works on the batches before:
neither a GPU nor the host waits for them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.datasets.utils import Batch


class StepLabels:
    """The labels of each task in the batches of all ranks in a step.

    Args:
        labels: of this rank's batch, (B, T), or (B,) for one task; NaN is a missing label.
        group: the ranks, each of which makes one at the same step; None for this rank alone.

    Example::

        #             rank 0               rank 1
        # labels      [[1, nan], [0, 1]]   [[0, nan]]
        # per_rank()  [1.5, 0.5]           [1.5, 0.5]
    """

    def __init__(self, labels: Tensor, group: dist.ProcessGroup | None) -> None:
        self._counts = _count(labels).cpu()
        self._ranks = 1 if group is None else group.size()
        self._work = None if group is None else dist.all_reduce(self._counts, group=group, async_op=True)

    def per_rank(self) -> Tensor:
        """Labels of all ranks divided by the number of ranks, (T,), in float64 on the host. The first call waits."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._counts.double() / self._ranks

    def labeled(self) -> list[bool]:
        """Whether any rank has a label, by task."""
        return (self.per_rank() > 0).tolist()


@dataclass
class CountedBatch(Batch):
    """A batch that knows the labels of all ranks in its step."""

    labels_of_step: StepLabels

    def to(self, device: torch.device, non_blocking: bool = False) -> "CountedBatch":
        """The batch on a device; the counts stay on the host."""
        return _counted(super().to(device, non_blocking), self.labels_of_step)

    def pin_memory(self) -> "CountedBatch":
        """The batch in pinned memory."""
        return _counted(super().pin_memory(), self.labels_of_step)


class LabelCounter:
    """Counts the labels of this rank's batches together with those of the other ranks.

    With such batches the loss is the mean over the labels of all ranks (`models/loss.py`), and a step changes nothing
    that only tasks without a label train (`training/dense_optimizer.py`). All ranks make the same calls.

    Args:
        timeout: seconds that a rank waits for the others.

    Example::

        counter = LabelCounter()
        iterator = counter.counted(batches)
        while True:
            pipeline.progress(iterator)
    """

    def __init__(self, *, timeout: float = 600.0) -> None:
        self._group: dist.ProcessGroup | None = None
        self._last: StepLabels | None = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))

    def counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The Batches as CountedBatches; batches of other classes stay as they are.

        All ranks must have the same number of batches. The labels should be on the host.
        """
        for batch in batches:
            if type(batch) is Batch:
                self._last = StepLabels(batch.labels, self._group)
                batch = _counted(batch, self._last)
            yield batch

    def close(self) -> None:
        """Closes the connections; all ranks call it."""
        if self._last is not None:
            self._last.per_rank()
        if self._group is not None:
            dist.destroy_process_group(self._group)
        self._group = self._last = None


def labels_of_step(batch: Batch) -> Tensor:
    """What the sums of a step's losses have been divided by, (T,): see `StepLabels.per_rank`.

    Of a batch that does not come from a LabelCounter, the labels of this rank, (T,).
    """
    return batch.labels_of_step.per_rank() if isinstance(batch, CountedBatch) else _count(batch.labels)


def _count(labels: Tensor) -> Tensor:
    columns = labels[:, None] if labels.dim() == 1 else labels
    return columns.isnan().logical_not().sum(dim=0)


def _counted(batch: Batch, labels_of_step: StepLabels) -> CountedBatch:
    return CountedBatch(batch.dense_features, batch.sparse_features, batch.labels, labels_of_step)
