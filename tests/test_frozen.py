"""Frozen groups keep every bit: tables, experts, gates and towers, and the states of their optimizers."""

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.datasets.utils import Batch

from stem_torchrec.checkpoints.folder import checkpoint_path
from stem_torchrec.checkpoints.saver import CheckpointSaver
from stem_torchrec.checkpoints.state import restore_state, training_state
from stem_torchrec.checkpoints.weights import save_weights
from stem_torchrec.config import (
    DenseOptimizerConfig,
    LoopConfig,
    ModelConfig,
    ShardingConfig,
    TrainConfig,
)
from stem_torchrec.models.table import with_arch
from stem_torchrec.models.weight_groups import group_of
from stem_torchrec.runtime.internals.torchrec_hooks import lookups_of
from stem_torchrec.tables import sharded_collections, table_groups
from stem_torchrec.transfer.add_tasks import add_tasks

from distributed import run_ranks
from reference import COLUMNS
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank, progress_after

pytestmark = pytest.mark.stack

TASKS = ("finish", "like", "share")
"""The last is new to a trained model."""
STEPS = 3
"""Before the groups are frozen, and after."""


@dataclass(frozen=True)
class Case:
    freeze: tuple[str, ...]
    optimizer: str
    sharding: ShardingConfig
    dense: DenseOptimizerConfig = field(default_factory=DenseOptimizerConfig)
    clip_norm: float | None = None
    model: ModelConfig = MODEL
    trains_later: bool = False

    def config(self) -> TrainConfig:
        return dataclasses.replace(
            config_of(self.optimizer, "auto", model=self.model),
            sharding=self.sharding,
            dense=self.dense,
            train=LoopConfig(clip_norm=self.clip_norm, freeze=self.freeze),
        )


L2 = dataclasses.replace(MODEL, embedding_l2=0.1)
CASES = {
    "sgd": Case(("shared",), "sgd", ShardingConfig(type="row_wise"), model=dataclasses.replace(L2, dropout=0.2)),
    "rowwise_adagrad": Case(
        ("like", "shared"),
        "rowwise_adagrad",
        # One rank has nothing but frozen tables.
        ShardingConfig(rules=("finish/*=table_wise:rank=0", "*=table_wise:rank=1"), input_dist="once"),
        DenseOptimizerConfig("adamw", weight_decay=0.1),
        clip_norm=1e-3,
        trains_later=True,
    ),
    "packed": Case(
        ("finish",),
        "adagrad",
        ShardingConfig(type="column_wise"),
        DenseOptimizerConfig(weight_decay=0.1),
        model=dataclasses.replace(L2, layout="packed"),
    ),
    "data_parallel": Case(
        ("shared", "finish"),
        "adam",
        ShardingConfig(type="data_parallel"),
        clip_norm=1e-3,
        model=L2,
        trains_later=True,
    ),
    "all tables": Case(("shared",), "adam", ShardingConfig(type="data_parallel"), model=with_arch(MODEL, "mmoe")),
    "dense kernel": Case(("like",), "adam", ShardingConfig(kernel="dense")),
}
"""Each has what moves weights without a gradient: moments, weight decay, decay of embeddings."""
Bits = dict[str, list[Tensor]]


@dataclass
class Outcome:
    """What changed on a rank, by weight: which of the weight and its states."""

    restored: set[str]
    """Weights that differ from those of the checkpoint that a run has read, or whose states do."""
    frozen: dict[str, set[int]]
    """In steps of a run with frozen groups."""
    learned: set[str]
    """Weights with a state other than 0."""
    without_backward: dict[str, bool]
    """Whether a table is looked up without a backward pass, by table."""
    later: dict[str, set[int]] = field(default_factory=dict)
    """In a step of a run that reads its checkpoint and trains all groups."""


def bits_of(run: Run) -> Bits:
    return run.table_bits() | run.dense_bits()


def changes(before: Bits, after: Bits) -> dict[str, set[int]]:
    return {
        name: {i for i, (old, new) in enumerate(zip(pieces, after[name], strict=True)) if not torch.equal(old, new)}
        for name, pieces in before.items()
    }


def changed(before: Bits, after: Bits) -> set[str]:
    return {name for name, pieces in changes(before, after).items() if pieces}


def saved(run: Run, folder: Path, step: int) -> str:
    saver = CheckpointSaver(str(folder))
    saver.save(training_state(run.model, run.optimizer, torch.zeros(6)), progress_after(step), wait=True)
    saver.close()
    return checkpoint_path(str(folder), step)


def resumed(config: TrainConfig, path: str, step: int) -> Run:
    run = Run.build(config)
    restore_state(run.model, run.optimizer, path, step=step, tasks=2, same_ranks=True)
    return run


def watched_lookups(run: Run) -> dict[str, bool]:
    """Whether each table is looked up without a backward pass; filled by the steps of the run."""
    seen: dict[str, bool] = {}

    def watch(tables: list[str], lookup: nn.Module) -> None:
        lookup.register_forward_hook(
            lambda module, args, pooled: seen.update(dict.fromkeys(tables, pooled.grad_fn is None))
        )

    for _, collection in sharded_collections(run.model):
        for tables, lookup in lookups_of(collection):
            watch(tables, lookup)
    return seen


def train_frozen(case: Case, folder: Path) -> Outcome:
    batches = of_this_rank(batches_of_ranks(2 * STEPS + 1, dist.get_world_size(), missing=0.2))
    config = case.config()
    free = dataclasses.replace(config, train=dataclasses.replace(config.train, freeze=()))
    run = Run.build(free)
    run.train(batches[:STEPS])
    before = bits_of(run)
    frozen = resumed(config, saved(run, folder, STEPS), STEPS)
    start, without_backward = bits_of(frozen), watched_lookups(frozen)
    losses = frozen.train(batches[STEPS:-1])
    assert all(bool(loss.isfinite().all()) for loss, _ in losses)
    end = bits_of(frozen)
    learned = {weight for weight, (_, *states) in start.items() if all(state.any() for state in states)}
    outcome = Outcome(changed(before, start), changes(start, end), learned, without_backward)
    if case.trains_later:
        later = resumed(free, saved(frozen, folder, 2 * STEPS), 2 * STEPS)
        outcome.restored |= changed(end, bits_of(later))
        later.train(batches[-1:])
        outcome.later = changes(end, bits_of(later))
    return outcome


@functools.cache
def on_two_ranks(name: str) -> list[Outcome]:
    with TemporaryDirectory() as folder:
        return run_ranks(2, train_frozen, CASES[name], Path(folder))


def owner(weight: str) -> str:
    if "/" in weight:
        return weight.split("/")[0].split(".")[-1]
    return group_of(weight, (*TASKS, "shared"))


EACH_CASE = [
    name if name in ("packed", "data_parallel") else pytest.param(name, marks=pytest.mark.long) for name in CASES
]


@pytest.mark.parametrize("name", EACH_CASE)
def test_frozen_groups_keep_the_bits_of_weights_and_states_and_the_others_train(name: str) -> None:
    frozen, outcomes = CASES[name].freeze, on_two_ranks(name)
    for outcome in outcomes:
        assert outcome.restored == set()
        for weight, pieces in outcome.frozen.items():
            if owner(weight) in frozen:
                assert not pieces, weight
    trained = {weight for outcome in outcomes for weight, pieces in outcome.frozen.items() if pieces}
    assert trained == {weight for outcome in outcomes for weight in outcome.frozen if owner(weight) not in frozen}
    for outcome in outcomes:
        for table, cut in outcome.without_backward.items():
            assert cut == set(frozen).issuperset(table_groups(table)), table
    # They have states to keep: those of tables, and those of the dense part.
    kept = {weight for outcome in outcomes for weight in outcome.learned if owner(weight) in frozen}
    assert {"/" in weight for weight in kept} == {True, False}


@pytest.mark.parametrize("name", [pytest.param("rowwise_adagrad", marks=pytest.mark.long), "data_parallel"])
def test_a_run_that_trains_them_again_goes_on_with_their_states(name: str) -> None:
    outcomes = on_two_ranks(name)
    moved = {weight for outcome in outcomes for weight, pieces in outcome.later.items() if pieces}
    assert {owner(weight) for weight in moved} == {"finish", "like", "shared"}


def learn_a_new_task(folder: Path) -> tuple[dict[str, set[int]], Tensor, Tensor]:
    """What changed by weight, and the logits of the first and the last step, which have the same rows."""
    trained = Run.build(config_of("rowwise_adagrad", "row_wise"))
    batches = of_this_rank(batches_of_ranks(6, dist.get_world_size(), missing=0.2))
    trained.train(batches[:3])
    save_weights(trained.model, folder / "weights")
    config = dataclasses.replace(
        trained.config,
        train=LoopConfig(freeze=("finish", "like", "shared")),
        # One rank has nothing but frozen tables.
        sharding=ShardingConfig(rules=("share/*=table_wise:rank=0", "*=table_wise:rank=1"), input_dist="once"),
    )
    run = Run.build(config, dataclasses.replace(COLUMNS, labels=TASKS))
    add_tasks(run.model, folder / "weights", trained=COLUMNS.labels, tables_from="shared")
    start = bits_of(run)
    (_, before), *_, (_, after) = run.train(with_new_labels(batch) for batch in [*batches[3:], batches[3]])
    return changes(start, bits_of(run)), before, after


def with_new_labels(batch: Batch) -> Batch:
    """The same rows with labels for TASKS; those of the new task are those of finish."""
    return dataclasses.replace(batch, labels=batch.labels[:, [0, 1, 0]])


def test_trained_tasks_predict_the_same_bits_while_a_new_task_learns_on_labels_of_all(tmp_path: Path) -> None:
    for changed_weights, before, after in run_ranks(2, learn_a_new_task, tmp_path):
        moved = {weight for weight, pieces in changed_weights.items() if pieces}
        assert {owner(weight) for weight in moved} == {"share"}
        assert torch.equal(after[:, :2], before[:, :2])
        assert not torch.equal(after[:, 2], before[:, 2])
