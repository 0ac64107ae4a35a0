"""Small runs on one GPU, or on the CPU to test the tests."""

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.datasets.utils import Batch

from stem_torchrec.checkpoints.weights import load_state, saved_tensors
from stem_torchrec.config import ShardingConfig, TrainConfig
from stem_torchrec.runtime.errors import Interrupted
from stem_torchrec.runtime.process import Process, join_process_group
from stem_torchrec.runtime.versions import fbgemm_has_cuda
from stem_torchrec.sharding.placement import FUSED_KERNELS
from stem_torchrec.training.trainer import Trainer, train

from reference import COLUMNS, TABLES, random_batch
from runs import MODEL, Run, batches_of_ranks, config_of

ON_CPU = os.environ.get("STEM_GPU_TESTS_ON_CPU") == "1"
FUSED = ("fused",) if ON_CPU else FUSED_KERNELS
"""The kernels of the device that keep the optimizer in the backward pass."""
KERNELS = (*FUSED, "dense")
# A step rounds weights of up to 2 at 1e-7 and sums gradients in another order than the equations do. Adam divides by
# the size of the gradient, which magnifies its rounding where it is small: 3e-6 of weights that move by 1e-3 to 1.
ROUNDING = {"rtol": 0, "atol": 1e-5}
EPS = 1e-4
"""The size of a gradient in these runs; the default lets a gradient that is all rounding move an element by as much as
any."""


def what_is_missing() -> str:
    """A sentence that says what these runs lack, or nothing."""
    if ON_CPU:
        return ""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return "" if fbgemm_has_cuda() else "fbgemm-gpu is not installed, and fbgemm-gpu-cpu has no CUDA kernels"


@contextmanager
def one_process() -> Iterator[Process]:
    """Joins this process to a process group of its own, and leaves no trace of it at the end."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
            environment.setenv(name, value)
        if ON_CPU:
            environment.setenv("CUDA_VISIBLE_DEVICES", "")
        with join_process_group(alone=True) as process:
            assert process.device.type == ("cpu" if ON_CPU else "cuda")
            yield process
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")


CallOnCPU = Callable[..., Any]
"""Calls its first argument with the others and with the process that it is called in."""


@contextmanager
def another_process_on_cpu() -> Iterator[CallOnCPU]:
    """Calls functions in a process that sees no GPU, as `function(*arguments, process)`, and returns their results."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CUDA_VISIBLE_DEVICES", "")
        executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        executor.submit(os.getpid).result(timeout=60)
    with executor:
        yield lambda *call: executor.submit(_alone_on_cpu, *call).result(timeout=300)


def _alone_on_cpu(function: Callable[..., Any], *arguments: Any) -> Any:
    with join_process_group(alone=True) as process:
        assert process.device.type == "cpu"
        return function(*arguments, process)


def train_until_evaluation(config: TrainConfig, process: Process) -> None:
    """Makes the steps before the first evaluation, and leaves a checkpoint."""
    ending = Event()
    with pytest.raises(Interrupted):
        train(config, process, watch=lambda metrics: ending.set(), ending=ending)


def resume_and_save(config: TrainConfig, process: Process) -> None:
    """Trains a run that resumes, to its end, and saves what it has read before it trains."""
    trainer = Trainer(config, process)
    trainer.save()
    trainer.run()


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """The weights and optimizer states in a checkpoint by name."""
    state = {
        name: torch.empty(tensor.size, dtype=tensor.properties.dtype)
        for name, tensor in saved_tensors(checkpoint).items()
        if name.startswith(("model.", "optimizer."))
    }
    load_state(state, checkpoint)
    return state


def run_config(
    kernel: str,
    optimizer: str,
    *,
    sharding_type: str = "table_wise",
    input_dist: str = "stock",
    model: dict[str, Any] | None = None,
    **options: Any,
) -> TrainConfig:
    """The configuration of a small run.

    Args:
        kernel: of all tables; dense ones are data_parallel.
        optimizer: of all tables.
        sharding_type: of tables that are fused.
        input_dist: how ids reach the tables.
        model: fields that differ from those of MODEL.
        **options: precision, and fields of SparseOptimizerConfig.
    """
    config = config_of(optimizer, sharding_type, model=dataclasses.replace(MODEL, **(model or {})), **options)
    if kernel == "dense":
        sharding_type = "data_parallel"
    sharding = ShardingConfig(type=sharding_type, kernel=kernel, input_dist=input_dist)
    return dataclasses.replace(config, sharding=sharding)


def batches(steps: int) -> list[Batch]:
    """Small batches with missing labels."""
    return [ranks[0] for ranks in batches_of_ranks(steps, 1, missing=0.3)]


def ids_of_tables(batch: Batch) -> dict[str, Tensor]:
    """The rows that a batch looks up, by the name of the table's weight."""
    return {
        f"{TABLES}.{group}/{feature}.weight": ids.values().unique()
        for feature, ids in batch.sparse_features.to_dict().items()
        for group in (*COLUMNS.labels, "shared")
    }


def rows_that_differ(weight: Tensor, other: Tensor) -> Tensor:
    return (weight != other).any(dim=1).nonzero().flatten()


def changed_tables(bits: dict[str, list[Tensor]], before: dict[str, list[Tensor]]) -> set[str]:
    """Tables of which `Run.table_bits` says that the weights or optimizer states changed."""
    assert bits.keys() == before.keys()
    return {
        table
        for table, pieces in bits.items()
        if not all(torch.equal(piece, old) for piece, old in zip(pieces, before[table], strict=True))
    }


def assert_same_bits(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert weights.keys() == expected.keys()
    differing = [name for name, weight in weights.items() if not torch.equal(weight, expected[name])]
    assert not differing, differing


def assert_close(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], **ROUNDING, msg=lambda text, name=name: f"{name}: {text}")


def two_runs(rows: int) -> tuple[Run, Run, int]:
    """Two runs of five steps on the same batches, and how often a batch has one id at most."""
    steps = [random_batch(step, rows=rows) for step in range(5)]
    runs = [Run.build(run_config("fused", "adagrad", eps=EPS)) for _ in range(2)]
    for run in runs:
        run.train(steps)
    ids = (batch.sparse_features[feature].values() for batch, feature in product(steps, COLUMNS.sparse))
    return *runs, max(int(each.bincount().max()) for each in ids)
