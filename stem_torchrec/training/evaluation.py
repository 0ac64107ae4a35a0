"""Evaluation of any model under a TorchRec train pipeline whose output is (losses (T,), logits (B, T))."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Protocol

import torch
from torch import Tensor, nn
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from stem_torchrec.data.batch import Exposures
from stem_torchrec.data.label_counts import weights_of
from stem_torchrec.metrics.multi_task import MultiTaskMetrics, TaskMetrics
from stem_torchrec.models.loss import labels_like
from stem_torchrec.runtime.hang_detection import set_activity


class EvaluationCut(Exception):
    """An evaluation was asked to end, on all ranks after the same batch."""


class EvaluationPipeline(Protocol):
    """What `evaluate` and `predict` need of a pipeline; TorchRec's train pipelines have it."""

    def progress(self, batches: Iterator[Batch]) -> tuple[Tensor, Tensor]:
        """The losses (T,) and logits (B, T) of the next batch; raises StopIteration where there is none."""


class BatchByBatch:
    """Evaluates one batch after the other, without reading ahead.

    Args:
        forward: maps a batch on the device to (loss, (losses (T,), logits (B, T))).
        device: of the model.
    """

    def __init__(self, forward: Callable[[Batch], tuple[Tensor, tuple[Tensor, Tensor]]], device: torch.device) -> None:
        self._forward, self._device = forward, device

    def progress(self, batches: Iterator[Batch]) -> tuple[Tensor, Tensor]:
        """See EvaluationPipeline."""
        batch = next(batches)
        return self._forward(batch.to(self._device))[1]


@contextmanager
def with_batches_aside(
    pipeline: TrainPipelineSparseDist,
    forward: Callable[[Batch], tuple[Tensor, tuple[Tensor, Tensor]]],
    *,
    device: torch.device,
) -> Iterator[BatchByBatch]:
    """Lends the model of a pipeline that has read batches ahead; the pipeline keeps them and trains on them later.

    Args:
        pipeline: of a training that is between two steps.
        forward: the model as the pipeline calls it.
        device: of the model.
    """
    model = pipeline.detach()
    try:
        yield BatchByBatch(forward, device)
    finally:
        pipeline.attach(model)


def evaluate(
    pipeline: EvaluationPipeline,
    model: nn.Module,
    exposures: Iterable[Exposures],
    *,
    tasks: Sequence[str],
    device: torch.device,
    weighted: bool = False,
    levels: Mapping[str, int | None] | None = None,
    should_end: Callable[[], bool] | None = None,
) -> dict[str, TaskMetrics]:
    """Exact metrics by task over the exposures of all ranks; see `predict`.

    `weighted` is true where the batches have weights of labels; `levels` are those of MultiTaskMetrics.

    `should_end` is called after each batch; where it returns True, on all ranks after the same batch, the evaluation
    raises EvaluationCut.
    """
    metrics = MultiTaskMetrics(tasks, device, weighted=weighted, levels=levels)
    cut = False

    def consume(item: Exposures, logits: Tensor, labels: Tensor) -> None:
        nonlocal cut
        metrics.update(logits, labels, item.groups, weights_of_rows(item))
        cut = cut or (should_end is not None and should_end())

    predict(pipeline, model, takewhile(lambda _: not cut, exposures), consume)
    if cut:
        raise EvaluationCut
    set_activity("computing metrics")
    return metrics.compute()


def predict(
    pipeline: EvaluationPipeline,
    model: nn.Module,
    exposures: Iterable[Exposures],
    consume: Callable[[Exposures, Tensor, Tensor], None],
) -> None:
    """Calls `consume` with each batch of exposures, its logits and its labels (B, T), without padding.

    Leaves the model in training mode. A train pipeline must be empty, as it is between two slices of its iterator. All
    ranks call it with the same number of batches. `exposures_of` makes exposures of plain batches.
    """
    # The pipeline holds up to three batches; their labels and groups wait here instead of traveling to the device.
    waiting: deque[Exposures] = deque()

    def batches() -> Iterator[Batch]:
        set_activity("reading a batch to evaluate")
        for item in exposures:
            set_activity("evaluating")
            waiting.append(item)
            yield item.batch
            set_activity("reading a batch to evaluate")

    iterator = batches()
    model.eval()
    with torch.no_grad():
        while True:
            set_activity("evaluating")
            try:
                _, logits = pipeline.progress(iterator)
            except StopIteration:
                break
            item = waiting.popleft()
            rows = len(item.rows)
            consume(item, logits[:rows], labels_like(logits, item.batch.labels)[:rows])
    model.train()


class ComposedLogits:
    """The logits of tasks that are predicted from weights of their own, of the same batches in the same order.

    Args:
        tasks: names of the T tasks.

    Example::

        composed = ComposedLogits(["finish", "like"])
        composed.begin(["finish"], last=False)
        composed.add(logits)  # None, for each batch
        composed.begin(["like"], last=True)
        composed.add(logits)  # (B, 2): finish as the first weights predicted it, like as these do
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self._tasks, self._last = list(tasks), False
        self._waiting: list[tuple[list[int], deque[Tensor]]] = []

    def begin(self, tasks: Sequence[str], *, last: bool) -> None:
        """The following logits are those of weights that some tasks are predicted from, the last ones or not."""
        self._last = last
        if not last:
            self._waiting.append(([self._tasks.index(task) for task in tasks], deque()))

    def add(self, logits: Tensor) -> Tensor | None:
        """The logits (B, T) of all tasks, from those of the last weights (B, T); None for those of earlier ones."""
        if not self._last:
            positions, waiting = self._waiting[-1]
            waiting.append(logits[:, positions].cpu())
            return None
        whole = logits.clone() if self._waiting else logits
        for positions, waiting in self._waiting:
            whole[:, positions] = waiting.popleft().to(whole.device)
        return whole


def weights_of_rows(item: Exposures) -> Tensor | None:
    """The weights (B, T) of the labels of exposures, without padding; None if they have none."""
    weights = weights_of(item.batch)
    return None if weights is None else weights[: len(item.rows)]


def exposures_of(batches: Iterable[Batch], *, groups: Callable[[Batch], Tensor] | None = None) -> Iterator[Exposures]:
    """Exposures of TorchRec batches that hold no padding; rows are numbered as they come on this rank.

    Args:
        batches: with labels (B, T), or (B,) for one task.
        groups: the groups of gAUC (B,) of a batch, usually its user ids; without it gAUC is NaN.

    Example::

        exposures_of(batches, groups=lambda batch: batch.sparse_features["user_id"].values())
    """
    start = 0
    for batch in batches:
        stop = start + len(batch.labels)
        yield Exposures(batch, torch.arange(start, stop), None if groups is None else groups(batch))
        start = stop
