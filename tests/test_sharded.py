"""STEM sharded over one and two ranks equals the equations, trained by hand."""

import dataclasses
from dataclasses import dataclass
from typing import get_args

import pytest
import torch
import torch.distributed as dist
from distributed import run_ranks
from reference import COLUMNS, TABLES, logits_by_formula, loss_by_formula, random_batch, train_by_hand
from runs import MODEL, ROWS, Run, batches_of_ranks, config_of, mine
from torch import Tensor

from stem_torchrec.config import ShardingType, TrainConfig

STEPS = 20
TYPES = [t for t in get_args(ShardingType) if t != "auto"]
# Row-wise Adagrad keeps a number per row and column shard, so the types that cut columns train otherwise.
CASES = [
    *(("sgd", sharding_type) for sharding_type in TYPES),
    *((name, t) for name in ("adagrad", "rowwise_adagrad") for t in ("table_wise", "row_wise", "data_parallel")),
]
# Tables and dense weights change by 0.01 to 1. Each step rounds at 6e-8 of a weight and sums gradients in another
# order than the reference; Adam and Adagrad divide by the size of the gradient, which magnifies its rounding where
# it is small. Measured after 20 steps: 1e-6.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


def config_of_case(optimizer: str, sharding_type: str) -> TrainConfig:
    rates = {"learning_rate": 5.0, "group_learning_rates": {"like": 2.0}} if optimizer == "sgd" else {}
    return config_of(optimizer, sharding_type, **rates)


def missing_of_case(optimizer: str) -> float:
    """With labels missing, ranks weigh rows differently and world sizes differ; SGD compares them without."""
    return 0.0 if optimizer == "sgd" else 0.3


@dataclass
class Trained:
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    outputs: list[tuple[Tensor, Tensor]]
    pipelined_modules: int


def train_all_cases() -> tuple[dict[tuple[str, str], Trained], Tensor]:
    trained = {}
    for case in CASES:
        run = Run.build(config_of_case(*case))
        before = run.weights()
        outputs = run.train(mine(batches_of_ranks(STEPS, dist.get_world_size(), missing=missing_of_case(case[0]))))
        trained[case] = Trained(before, run.weights(), outputs, len(run.pipeline._pipelined_modules))
    bf16 = Run.build(config_of("sgd", "table_wise", precision="bf16"))
    [(losses, logits)] = bf16.train(mine(batches_of_ranks(1, dist.get_world_size())))
    assert all(weight.dtype == torch.float32 for weight in bf16.weights().values())
    return trained, losses, logits


@pytest.fixture(scope="module")
def results() -> dict[int, list]:
    """What each rank returns, by world size."""
    return {world_size: run_ranks(world_size, train_all_cases) for world_size in (1, 2)}
