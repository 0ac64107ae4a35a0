"""Evaluation of any model under a TorchRec train pipeline whose output is (losses (T,), logits (B, T))."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor, nn
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from stem_torchrec.data.batch import Exposures
from stem_torchrec.metrics.multi_task import MultiTaskMetrics, TaskMetrics
from stem_torchrec.models.loss import labels_like
from stem_torchrec.runtime.hang_detection import set_activity


class EvaluationCut(Exception):
    """An evaluation that was asked to stop, on all ranks after the same batch."""


def evaluate(
    pipeline: TrainPipelineSparseDist,
    model: nn.Module,
    exposures: Iterable[Exposures],
    *,
    tasks: Sequence[str],
    device: torch.device,
    asks: Callable[[], bool] | None = None,
) -> dict[str, TaskMetrics]:
    """Exact metrics by task over the exposures of all ranks; see `predict`.

    With `asks`, which is called after each batch and says the same on all ranks, it may end early by EvaluationCut.
    """
    metrics = MultiTaskMetrics(tasks, device)
    cut = False

    def consume(item: Exposures, logits: Tensor, labels: Tensor) -> None:
        nonlocal cut
        metrics.update(logits, labels, item.groups)
        cut = cut or (asks is not None and asks())

    predict(pipeline, model, takewhile(lambda _: not cut, exposures), consume)
    if cut:
        raise EvaluationCut
    set_activity("computing metrics")
    return metrics.compute()


def predict(
    pipeline: TrainPipelineSparseDist,
    model: nn.Module,
    exposures: Iterable[Exposures],
    consume: Callable[[Exposures, Tensor, Tensor], None],
) -> None:
    """Calls `consume` with each batch of exposures, its logits and its labels (B, T), padding left out.

    Leaves the model in training mode. The pipeline must be empty, as it is between two slices of its iterator; all
    ranks take part and need the same number of batches. `exposures_of` makes exposures of plain batches.
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
