"""How long the steps of the reference model are, and how much of that is waiting for the next batch."""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torchrec.datasets.utils import Batch

from stem_torchrec.config import DataConfig, TrainConfig
from stem_torchrec.data.label_counts import LabelCounter
from stem_torchrec.data.loader import data_loader
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.runtime.process import Process
from stem_torchrec.training.assembly import build_pipeline, build_sharded_model
from stem_torchrec.training.optimizers import build_optimizer

from feeding.rates import open_reader

WARM_UP = 3
"""Steps that are not counted; the first ones wait for the first block of rows."""


class Timed:
    """Batches, and the seconds that taking them took."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._batches = iter(batches)
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - start


def measure_waiting(
    path: str, *, batch_size: int, workers: int, steps: int, model: STEMOptions, process: Process
) -> Mapping[str, Any]:
    """Trains a model on a log; returns the ms of a step, and those in which it waits for its batch.

    Args:
        path: of the log.
        batch_size: rows of a step.
        workers: of the reader.
        steps: after WARM_UP; as many as the log has rows for, at most.
        model: its sizes.
        process: this rank.
    """
    reader = open_reader(path, batch_size=batch_size, workers=workers)
    config = TrainConfig(data=DataConfig(batch_size=batch_size), model=model)
    sharded, _ = build_sharded_model(config, reader.columns, process)
    optimizer = build_optimizer(sharded, sparse=config.sparse, dense=config.dense)
    pipeline = build_pipeline(sharded, optimizer, config, process)
    batches = Timed(data_loader(reader, pin_memory=process.device.type == "cuda"))
    counter = LabelCounter()
    iterator = counter.counted(batches)
    # The pipeline reads two batches ahead, so that each further step takes one.
    steps = min(steps, reader.steps - WARM_UP - 2)
    for _ in range(WARM_UP):
        pipeline.progress(iterator)
    start, before = time.perf_counter(), batches.seconds
    for _ in range(steps):
        pipeline.progress(iterator)
    seconds, waited = time.perf_counter() - start, batches.seconds - before
    counter.close()
    return {
        "steps": steps,
        "step_ms": seconds / steps * 1000,
        "waiting_ms": waited / steps * 1000,
        "waiting_share": waited / seconds,
    }


def without_experts(model: STEMOptions) -> STEMOptions:
    """A model of small experts, whose steps are as short as those of a fast device."""
    return dataclasses.replace(
        model, num_shared_experts=1, num_task_experts=1, expert_hidden=(8,), gate_hidden=(8,), tower_hidden=(8,)
    )
