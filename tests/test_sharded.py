"""STEM sharded over ranks and hosts equals the equations, trained by hand."""

import functools
import itertools
from dataclasses import dataclass
from typing import get_args

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.config import ShardingType, TrainConfig
from stem_torchrec.sharding.placement import COLUMN_TYPES

from distributed import run_ranks
from reference import COLUMNS, TABLES, logits_by_formula, loss_by_formula, train_by_hand
from runs import Run, batches_of_ranks, config_of, of_this_rank

STEPS = 20
MISSING = 0.3
"""Share of labels that are missing, so that ranks have different numbers of them."""
TYPES = [t for t in get_args(ShardingType) if t != "auto"]
# Row-wise Adagrad keeps a number per row and column shard, so the types that cut columns train otherwise.
CASES = [
    *(("sgd", sharding_type) for sharding_type in TYPES),
    *(("rowwise_adagrad", sharding_type) for sharding_type in TYPES if sharding_type not in COLUMN_TYPES),
    ("adagrad", "row_wise"),  # In other types and layouts: test_layouts, test_pooling.
]
# Ranks, and how many of them are on a host: on several hosts the types differ that cut tables within one.
ON_MESHES = pytest.mark.parametrize(
    "mesh",
    [(1, 1), (2, 2), pytest.param((4, 2), marks=pytest.mark.long)],
    ids="{0[0]} ranks, {0[1]} on a host".format,
)
# A step rounds weights of up to 2 at 1e-7 and sums gradients in another order than the equations do. Adam divides by
# the size of the gradient, which magnifies its rounding where it is small: 3e-6 of weights that move by 1e-3 to 1.
ROUNDING = {"rtol": 0, "atol": 1e-5}


@dataclass
class Trained:
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    losses: Tensor
    logits: Tensor
    pipelined_modules: int


@dataclass
class Results:
    cases: dict[tuple[str, str], Trained]
    bf16: tuple[Tensor, Tensor]


def config_of_case(optimizer: str, sharding_type: str) -> TrainConfig:
    if optimizer == "sgd":
        return config_of(optimizer, sharding_type, learning_rate=5.0, group_learning_rates={"like": 2.0})
    # The size of a gradient here; the default lets a gradient that is all rounding move an element by as much as any.
    return config_of(optimizer, sharding_type, eps=1e-4)


def train_all_cases() -> Results:
    world_size = dist.get_world_size()
    cases = {}
    for case in CASES:
        run = Run.build(config_of_case(*case))
        before = run.weights()
        outputs = run.train(of_this_rank(batches_of_ranks(STEPS, world_size, missing=MISSING)))
        cases[case] = Trained(before, run.weights(), *outputs[0], len(run.pipeline._pipelined_modules))
    run = Run.build(config_of("sgd", "table_wise", precision="bf16"))
    [bf16] = run.train(of_this_rank(batches_of_ranks(1, world_size)))
    assert all(weight.dtype == torch.float32 for weight in run.weights().values())
    return Results(cases, bf16)


@functools.cache
def results(mesh: tuple[int, int]) -> list[Results]:
    return run_ranks(mesh[0], train_all_cases, ranks_per_host=mesh[1], timeout=300)


@functools.cache
def by_hand(optimizer: str) -> dict[str, Tensor]:
    batches = batches_of_ranks(STEPS, 1, missing=MISSING)
    before = results((1, 1))[0].cases["sgd", "table_wise"].before
    return train_by_hand(before, batches, COLUMNS.labels, config_of_case(optimizer, "table_wise"))


def assert_equal(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(weights) == set(expected)
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name]), name


@ON_MESHES
def test_initial_weights_are_the_same_for_every_plan_and_world_size(mesh: tuple[int, int]):
    expected = results((1, 1))[0].cases["sgd", "table_wise"].before
    for rank in results(mesh):
        for trained in rank.cases.values():
            assert_equal(trained.before, expected)


def test_no_table_and_no_block_of_rows_starts_as_another():
    expected = results((1, 1))[0].cases["sgd", "table_wise"].before
    uid, tags = expected[f"{TABLES}.like/uid.weight"], expected[f"{TABLES}.like/tags.weight"]
    assert not torch.equal(uid[:7], tags)
    assert not torch.equal(uid, expected[f"{TABLES}.shared/uid.weight"])
    assert uid.unique(dim=0).shape == uid.shape
    # 40,000 draws: the sample's deviation is within 0.4 % of the true one at one sigma, here 5.
    assert uid.std().item() == pytest.approx(0.5, rel=0.02)


@ON_MESHES
def test_the_pipeline_distributes_the_ids_of_every_plan_ahead(mesh: tuple[int, int]):
    for rank in results(mesh):
        for case, trained in rank.cases.items():
            # One embedding collection, found by tracing the model; without it the pipeline silently does not overlap.
            assert trained.pipelined_modules == 1, case


@ON_MESHES
def test_sharded_training_equals_the_equations_trained_by_hand(mesh: tuple[int, int]):
    for rank, case in itertools.product(results(mesh), CASES):
        trained, expected = rank.cases[case], by_hand(case[0])
        assert set(trained.after) == set(expected)
        for name, weight in trained.after.items():
            torch.testing.assert_close(
                weight, expected[name], **ROUNDING, msg=lambda text, name=(case, name): f"{name}: {text}"
            )
            # Far beyond the tolerance, so that equality means something.
            assert (weight - trained.before[name]).abs().max() > 1e-4, (case, name)


@ON_MESHES
def test_the_losses_of_a_step_add_up_this_ranks_rows_over_the_labels_of_all_ranks(mesh: tuple[int, int]):
    config = config_of_case("adagrad", "row_wise").model
    batches = batches_of_ranks(1, mesh[0], missing=MISSING)[0]
    labels_per_rank = sum((~batch.labels.isnan()).sum(dim=0) for batch in batches) / mesh[0]
    for rank, batch in enumerate(batches):
        trained = results(mesh)[rank].cases["adagrad", "row_wise"]
        expected = logits_by_formula(trained.before, batch, COLUMNS.labels, config)
        torch.testing.assert_close(trained.logits, expected, **ROUNDING)
        for task, loss in enumerate(trained.losses):
            mean = loss_by_formula(expected[:, [task]], batch.labels[:, [task]])
            share = (~batch.labels[:, task].isnan()).sum() / labels_per_rank[task]
            torch.testing.assert_close(loss, mean * share, **ROUNDING)


@ON_MESHES
def test_sgd_gives_the_same_weights_for_every_plan_and_world_size(mesh: tuple[int, int]):
    cases = results(mesh)[0].cases
    # Columns do not enter each other's sums, so cutting a table by columns changes no bit.
    for sharding_type in ("column_wise", "table_column_wise"):
        assert_equal(cases["sgd", sharding_type].after, cases["sgd", "table_wise"].after)
    # All ranks have the same dense weights and read the same tables.
    for rank in results(mesh):
        for case, trained in rank.cases.items():
            assert_equal(trained.after, cases[case].after)
    # Another order of the same sums.
    for name, weight in cases["sgd", "table_wise"].after.items():
        torch.testing.assert_close(weight, results((1, 1))[0].cases["sgd", "table_wise"].after[name], **ROUNDING)


@ON_MESHES
def test_bf16_logits_are_near_those_in_fp32_and_losses_stay_fp32(mesh: tuple[int, int]):
    config = config_of_case("sgd", "table_wise").model
    for rank, batch in enumerate(batches_of_ranks(1, mesh[0])[0]):
        losses, logits = results(mesh)[rank].bf16
        before = results(mesh)[rank].cases["sgd", "table_wise"].before
        expected = logits_by_formula(before, batch, COLUMNS.labels, config)
        assert losses.dtype == logits.dtype == torch.float32
        # bf16 keeps 8 bits, so a factor is off by up to 2^-9; six layers with up to 24 summands add their errors up.
        torch.testing.assert_close(logits, expected, rtol=0, atol=0.02 * expected.abs().max().item())
        assert (logits - expected).abs().max() > 1e-5, "nothing ran in bf16"
        torch.testing.assert_close(losses.sum(), loss_by_formula(logits, batch.labels), **ROUNDING)
