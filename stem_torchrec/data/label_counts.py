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


@dataclass
class WeightedBatch(Batch):
    """A batch whose labels have weights from 0 on, (B, T); one with the weight 0 counts as missing."""

    weights: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "WeightedBatch":
        """The batch on a device."""
        return _weighted(super().to(device, non_blocking), self.weights.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "WeightedBatch":
        """The batch in pinned memory."""
        return _weighted(super().pin_memory(), self.weights.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator of a GPU which stream uses the batch."""
        super().record_stream(stream)
        self.weights.record_stream(stream)


class StepLabels:
    """The labels of each task in the batches of all ranks in a step; if they have weights, the sums of these.

    Args:
        labels: of this rank's batch, (B, T), or (B,) for one task; NaN is a missing label.
        group: the ranks, each of which makes one at the same step; None for this rank alone.
        weights: of the labels, (B, T), on all ranks or on none.

    Example::

        #             rank 0               rank 1
        # labels      [[1, nan], [0, 1]]   [[0, nan]]
        # per_rank()  [1.5, 0.5]           [1.5, 0.5]
    """

    def __init__(self, labels: Tensor, group: dist.ProcessGroup | None, weights: Tensor | None = None) -> None:
        self._counts = _count(labels, weights).cpu()
        self._ranks = 1 if group is None else group.size()
        self._work = None if group is None else dist.all_reduce(self._counts, group=group, async_op=True)

    def per_rank(self) -> Tensor:
        """Labels of all ranks, each times its weight, divided by the number of ranks, (T,), in float64 on the host.

        The first call waits.
        """
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._counts.double() / self._ranks

    def labeled(self) -> list[bool]:
        """Whether any rank has a label, of a weight above 0, by task."""
        return (self.per_rank() > 0).tolist()


@dataclass
class CountedBatch(Batch):
    """A batch that knows the labels of all ranks in its step."""

    labels_of_step: StepLabels
    weights: Tensor | None = None
    """See WeightedBatch."""

    def to(self, device: torch.device, non_blocking: bool = False) -> "CountedBatch":
        """The batch on a device; the counts stay on the host."""
        weights = None if self.weights is None else self.weights.to(device, non_blocking=non_blocking)
        return _counted(super().to(device, non_blocking), self.labels_of_step, weights)

    def pin_memory(self) -> "CountedBatch":
        """The batch in pinned memory."""
        weights = None if self.weights is None else self.weights.pin_memory()
        return _counted(super().pin_memory(), self.labels_of_step, weights)

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator of a GPU which stream uses the batch."""
        super().record_stream(stream)
        if self.weights is not None:
            self.weights.record_stream(stream)


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
            if type(batch) in (Batch, WeightedBatch):
                weights = weights_of(batch)
                self._last = StepLabels(batch.labels, self._group, weights)
                batch = _counted(batch, self._last, weights)
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

    Of a batch that does not come from a LabelCounter, that of the labels of this rank, (T,).
    """
    if isinstance(batch, CountedBatch):
        return batch.labels_of_step.per_rank()
    return _count(batch.labels, weights_of(batch))


def weights_of(batch: Batch) -> Tensor | None:
    """The weights of a batch's labels (B, T); None if it has none."""
    return batch.weights if isinstance(batch, WeightedBatch | CountedBatch) else None


def _count(labels: Tensor, weights: Tensor | None) -> Tensor:
    columns = labels[:, None] if labels.dim() == 1 else labels
    known = columns.isnan().logical_not()
    return known.sum(dim=0) if weights is None else (known * weights.double()).sum(dim=0)


def _weighted(batch: Batch, weights: Tensor) -> WeightedBatch:
    return WeightedBatch(batch.dense_features, batch.sparse_features, batch.labels, weights)


def _counted(batch: Batch, labels_of_step: StepLabels, weights: Tensor | None) -> CountedBatch:
    return CountedBatch(batch.dense_features, batch.sparse_features, batch.labels, labels_of_step, weights)
