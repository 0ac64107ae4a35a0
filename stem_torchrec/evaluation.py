"""Evaluation of any model under a TorchRec train pipeline whose output is (losses (T,), logits (B, T))."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from stem_torchrec.data.batch import Exposures
from stem_torchrec.metrics import MultiTaskMetrics, TaskMetrics


def evaluate(
    pipeline: TrainPipelineSparseDist,
    model: nn.Module,
    exposures: Iterable[Exposures],
    *,
    tasks: Sequence[str],
    device: torch.device,
) -> dict[str, TaskMetrics]:
    """Exact metrics by task over the exposures of all ranks; see `predict`."""
    metrics = MultiTaskMetrics(tasks, device)
    predict(
        pipeline,
        model,
        exposures,
        lambda item, logits: metrics.update(logits, item.batch.labels[: len(logits)], item.groups),
    )
    return metrics.compute()


def predict(
    pipeline: TrainPipelineSparseDist,
    model: nn.Module,
    exposures: Iterable[Exposures],
    consume: Callable[[Exposures, Tensor], None],
) -> None:
    """Calls `consume` with each batch of exposures and its logits (B, T), padding left out.

    Leaves the model in training mode. The pipeline must be empty, as it is between two slices of its iterator; all
    ranks take part and need the same number of batches.
    """
    # The pipeline holds up to three batches; their labels and groups wait here instead of traveling to the device.
    waiting: deque[Exposures] = deque()

    def batches() -> Iterator[Batch]:
        for item in exposures:
            waiting.append(item)
            yield item.batch

    iterator = batches()
    model.eval()
    with torch.no_grad():
        while True:
            try:
                _, logits = pipeline.progress(iterator)
            except StopIteration:
                break
            item = waiting.popleft()
            consume(item, logits[: len(item.rows)])
    model.train()
