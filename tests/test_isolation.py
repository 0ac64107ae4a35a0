"""A step whose loss is one task's leaves the tables and optimizer states of the others as they are, bit for bit."""

import dataclasses
import functools
from itertools import product

import pytest
import torch
import torch.distributed as dist

from stem_torchrec.config import ModelConfig
from stem_torchrec.sharding.placement import FUSED_TYPES

from distributed import run_ranks
from reference import COLUMNS
from runs import MODEL, Run, batches_of_ranks, config_of, mine, with_labels_of

OPTIMIZERS = ["sgd", "adagrad", "rowwise_adagrad"]
TYPES = ["data_parallel", *FUSED_TYPES]
CASES = [
    *product(OPTIMIZERS, TYPES, [2]),
    *product(OPTIMIZERS, ["table_wise", "row_wise", "data_parallel"], [1, 3]),
]


@dataclasses.dataclass
class Outcome:
    """What steps on one task's labels changed on a rank."""

    held: dict[str, int]
    """How many tensors the rank holds of each table: weights and optimizer states."""
    changed: dict[str, set[int]]
    """Which of them changed, by table."""


def train_one_task(model: ModelConfig, optimizer: str, sharding_type: str) -> list[Outcome]:
    """One outcome by task; before, a few steps on the labels of all tasks fill the optimizer states."""
    run = Run.build(config_of(optimizer, sharding_type, model=model))
    batches = mine(batches_of_ranks(5, dist.get_world_size(), missing=0.3))
    run.train(batches[:3])
    outcomes = []
    for task in range(len(COLUMNS.labels)):
        before = run.table_bits()
        run.train(with_labels_of(task, batches[3:]))
        after = run.table_bits()
        outcomes.append(
            Outcome(
                held={table: len(pieces) for table, pieces in before.items()},
                changed={
                    table: {i for i, piece in enumerate(pieces) if not torch.equal(piece, after[table][i])}
                    for table, pieces in before.items()
                },
            )
        )
    return outcomes


def train_all_cases() -> dict[tuple[str, str, int], list[Outcome]]:
    outcomes = {
        (optimizer, sharding_type, num_layers): train_one_task(
            dataclasses.replace(MODEL, num_layers=num_layers), optimizer, sharding_type
        )
        for optimizer, sharding_type, num_layers in CASES
    }
    outcomes["trains all", "row_wise", 1] = train_one_task(
        dataclasses.replace(MODEL, num_layers=1, trains="all"), "adagrad", "row_wise"
    )
    return outcomes


@functools.cache
def results() -> list[dict[tuple[str, str, int], list[Outcome]]]:
    # Two hosts, so that the types that cut tables within a host differ from those that do not.
    return run_ranks(4, train_all_cases, ranks_per_host=2, timeout=300)


def changed_tables(case: tuple[str, str, int], task: int) -> set[str]:
    """Tables of which some rank's weights or states changed."""
    return {table for rank in results() for table, changed in rank[case][task].changed.items() if changed}


def tables_of(*groups: str) -> set[str]:
    return {f"{group}/{feature}" for group in groups for feature in COLUMNS.sparse}


@pytest.mark.parametrize(("optimizer", "sharding_type", "num_layers"), CASES)
def test_one_task_trains_its_own_and_the_shared_tables_only(optimizer: str, sharding_type: str, num_layers: int):
    case = (optimizer, sharding_type, num_layers)
    for i, task in enumerate(COLUMNS.labels):
        assert changed_tables(case, i) == tables_of(task, "shared")


@pytest.mark.parametrize("sharding_type", TYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_states_are_compared_and_change_with_their_tables(optimizer: str, sharding_type: str):
    for i, task in enumerate(COLUMNS.labels):
        changed = {table: set() for table in tables_of(task, "shared", *COLUMNS.labels)}
        held = dict.fromkeys(changed, 0)
        for rank in results():
            outcome = rank[optimizer, sharding_type, 2][i]
            for table, number in outcome.held.items():
                held[table] = max(held[table], number)
                changed[table] |= outcome.changed[table]
        # Weights, and what the optimizer keeps: nothing or one accumulator.
        assert set(held.values()) == {1 if optimizer == "sgd" else 2}
        for table in tables_of(task, "shared"):
            assert changed[table] == set(range(held[table]))


def test_training_all_is_what_lets_a_task_into_the_tables_of_others():
    assert changed_tables(("trains all", "row_wise", 1), 0) == tables_of("finish", "like", "shared")
