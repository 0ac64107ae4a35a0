"""A step whose labels are one task's leaves what belongs to the other tasks as it is, bit for bit: tables, experts,
gates and towers, and their optimizer states."""

import dataclasses
import functools
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.config import DenseOptimizerConfig
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.sharding.placement import FUSED_TYPES

from distributed import run_ranks
from reference import COLUMNS, TABLES
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank, with_labels_of

pytestmark = pytest.mark.stack

OPTIMIZERS = ["sgd", "adagrad", "rowwise_adagrad"]
DENSE = {
    "sgd": (DenseOptimizerConfig(), None),
    "adagrad": (DenseOptimizerConfig(weight_decay=0.1), 1e-3),
    "rowwise_adagrad": (DenseOptimizerConfig(name="adamw", weight_decay=0.1), None),
}
"""The optimizer of the dense part beside that of the tables, and the norm to which its gradients are clipped."""
TYPES = ["data_parallel", *FUSED_TYPES]
Case = tuple[str, str, int]
"""Optimizer, sharding type and number of layers."""
Bits = dict[str, list[Tensor]]


@dataclasses.dataclass
class Outcome:
    """What steps on one task's labels, or on none, changed on a rank."""

    tensors: dict[str, int]
    """How many tensors of each table the rank has: weights and optimizer states."""
    changed: dict[str, set[int]]
    """Which of them changed, by table."""
    dense: dict[str, set[int]]
    """Which of the weight, the number of steps and the two moments of a dense parameter changed, by name."""
    gradients: dict[str, bool]
    """Whether the last step gave a dense parameter a gradient other than zero, by name."""


def train_one_task(model: STEMOptions, optimizer: str, sharding_type: str) -> list[Outcome]:
    """One outcome by task, and one without labels; before, a few steps on all labels fill the optimizer states."""
    dense, clip_norm = DENSE[optimizer]
    config = dataclasses.replace(config_of(optimizer, sharding_type, model=model), dense=dense)
    run = Run.build(dataclasses.replace(config, train=dataclasses.replace(config.train, clip_norm=clip_norm)))
    batches = of_this_rank(batches_of_ranks(5, dist.get_world_size(), missing=0.3))
    run.train(batches[:3])
    outcomes = []
    for task in (*range(len(COLUMNS.labels)), None):
        tables, dense_part = run.table_bits(), run.dense_bits()
        run.train(with_labels_of(task, batches[3:]))
        gradients = {
            name: p.grad is not None and bool(p.grad.count_nonzero())
            for name, p in run.model.named_parameters()
            if TABLES not in name
        }
        changed = changes(dense_part, run.dense_bits())
        numbers = {table: len(pieces) for table, pieces in tables.items()}
        outcomes.append(Outcome(numbers, changes(tables, run.table_bits()), changed, gradients))
    return outcomes


def changes(before: Bits, after: Bits) -> dict[str, set[int]]:
    return {
        name: {i for i, piece in enumerate(pieces) if not torch.equal(piece, after[name][i])}
        for name, pieces in before.items()
    }


def train_cases(cases: list[Case]) -> dict[Case, list[Outcome]]:
    return {
        (optimizer, sharding_type, layers): train_one_task(
            dataclasses.replace(MODEL, num_layers=layers), optimizer, sharding_type
        )
        for optimizer, sharding_type, layers in cases
    }


@functools.cache
def by_rank(ranks: int) -> list[dict[Case, list[Outcome]]]:
    """Every optimizer at every depth, on as many ranks."""
    return run_ranks(ranks, train_cases, list(product(OPTIMIZERS, [SHARDED[ranks]], [1, 2, 3])), timeout=300)


SHARDED = {1: "table_wise", 2: "row_wise", 4: "column_wise"}
"""A sharding type by number of ranks."""
ON_RANKS = pytest.mark.parametrize("ranks", [1, 2, pytest.param(4, marks=pytest.mark.long)])


def tables_of(*groups: str) -> set[str]:
    return {f"{group}/{feature}" for group in groups for feature in COLUMNS.sparse}


def owner_of(parameter: str) -> str:
    """The task or `shared` in the name of a dense parameter."""
    [owner] = {*COLUMNS.labels, "shared"} & set(parameter.split("."))
    return owner


def assert_isolated(outcomes: list[dict[Case, list[Outcome]]], case: Case) -> None:
    """That steps on one task's labels changed its own and the shared tables, with all their states, and no others."""
    for i, task in enumerate(COLUMNS.labels):
        tensors = {
            table: max(rank[case][i].tensors.get(table, 0) for rank in outcomes)
            for table in tables_of(*COLUMNS.labels, "shared")
        }
        # Weights, and what the optimizer keeps: nothing or one accumulator.
        assert set(tensors.values()) == {1 if case[0] == "sgd" else 2}
        for table, number in tensors.items():
            changed = set().union(*(rank[case][i].changed.get(table, set()) for rank in outcomes))
            assert changed == (set(range(number)) if table in tables_of(task, "shared") else set()), (task, table)


def assert_dense_part_is_isolated(outcomes: list[dict[Case, list[Outcome]]], case: Case) -> None:
    """The same for experts, gates, towers and projections: all that the task trains makes steps, and nothing else."""
    for rank, (i, task) in product(outcomes, enumerate(COLUMNS.labels)):
        for name, changed in rank[case][i].dense.items():
            # On a few rows some units are off and their first moments 0; steps are counted and moments decay anyway.
            if owner_of(name) in (task, "shared"):
                assert changed >= {1, 3}, (task, name)
            else:
                assert not changed, (task, name)


@ON_RANKS
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_task_trains_its_own_and_the_shared_tables_and_states_only(optimizer: str, ranks: int) -> None:
    for layers in (1, 2, 3):
        assert_isolated(by_rank(ranks), (optimizer, SHARDED[ranks], layers))


@ON_RANKS
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_task_trains_its_own_and_the_shared_dense_parts_and_states_only(optimizer: str, ranks: int) -> None:
    for layers in (1, 2, 3):
        assert_dense_part_is_isolated(by_rank(ranks), (optimizer, SHARDED[ranks], layers))


@ON_RANKS
def test_a_step_without_labels_changes_nothing(ranks: int) -> None:
    for rank in by_rank(ranks):
        for outcomes in rank.values():
            assert not any(outcomes[-1].changed.values())
            assert not any(outcomes[-1].dense.values())


@ON_RANKS
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_one_task_gives_no_gradient_to_experts_gates_and_towers_of_the_others(layers: int, ranks: int) -> None:
    for rank in by_rank(ranks):
        for i, task in enumerate(COLUMNS.labels):
            gradients = rank["sgd", SHARDED[ranks], layers][i].gradients
            trained = {owner_of(name) for name, nonzero in gradients.items() if nonzero}
            assert trained == {task, "shared"}
            assert {part for name in gradients for part in ("experts", "gates", "towers") if f"{part}." in name} == {
                "experts",
                "gates",
                "towers",
            }
            # On two ranks with a few rows some units may be off, but each part of the task has some that are on.
            for part in ("experts", "gates", "towers"):
                assert any(gradients[n] for n in gradients if owner_of(n) == task and f"{part}." in n), part


@functools.cache
def on_two_hosts() -> list[dict[Case, list[Outcome]]]:
    # Two hosts, so that the types that cut tables within a host differ from those that do not.
    return run_ranks(4, train_cases, list(product(OPTIMIZERS, TYPES, [2])), ranks_per_host=2, timeout=300)


@pytest.mark.long
@pytest.mark.parametrize("sharding_type", TYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_isolation_holds_for_every_sharding_type_on_two_hosts(optimizer: str, sharding_type: str) -> None:
    assert_isolated(on_two_hosts(), (optimizer, sharding_type, 2))
    assert_dense_part_is_isolated(on_two_hosts(), (optimizer, sharding_type, 2))


def tables_changed_when_all_are_trained() -> set[str]:
    [outcome, *_] = train_one_task(dataclasses.replace(MODEL, num_layers=1, trains="all"), "adagrad", "row_wise")
    return {table for table, changed in outcome.changed.items() if changed}


def test_training_all_is_what_lets_a_task_into_the_tables_of_others() -> None:
    changed = set().union(*run_ranks(2, tables_changed_when_all_are_trained))
    assert changed == tables_of("finish", "like", "shared")
