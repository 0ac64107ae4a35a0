"""Sparse optimizers, learning rates by group, the schedule and gradient clipping."""

import dataclasses
import functools
import math
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch
from torch import Tensor
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

from stem_torchrec.config import LoopConfig, ScheduleConfig, ShardingConfig, SparseOptimizerConfig, TrainConfig
from stem_torchrec.models.build import build_model
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.optimizers import apply_sparse_optimizer
from stem_torchrec.training.rate_schedule import RateSchedule
from stem_torchrec.training.sparse_optimizers import check_sparse_optimizer

from distributed import run_ranks
from reference import COLUMNS, TABLES, train_by_hand
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank

pytestmark = pytest.mark.stack

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
STEPS = 6
DECAY = 0.01
# Two steps of warm-up, then down to 0 at step 6.
SCHEDULE, FACTORS = ScheduleConfig(warmup_steps=2, decay="linear"), [1 / 3, 2 / 3, 1, 3 / 4, 1 / 2, 1 / 4]


def check(
    name: str, *, device: torch.device = CPU, dense_kernel: bool = False, labels_missing: bool = False, **sparse
) -> None:
    config = SparseOptimizerConfig(name, **sparse)
    check_sparse_optimizer(config, device=device, dense_kernel=dense_kernel, labels_missing=labels_missing)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
def test_optimizers_without_moments_and_decay_run_everywhere(name: str):
    for device in (CPU, CUDA):
        for dense_kernel in (False, True):
            check(name, device=device, dense_kernel=dense_kernel, labels_missing=True)


def test_moments_run_fused_on_cuda_and_outside_backward_as_adam():
    for name in ("adam", "lamb", "partial_rowwise_adam"):
        check(name, device=CUDA, weight_decay=0.1 if name == "lamb" else 0.0)
        with pytest.raises(UserError, match=rf"FBGEMM does not fuse {name} on CPU; choose sgd, adagrad"):
            check(name)
    check("adam", dense_kernel=True)
    with pytest.raises(UserError, match=r"or add --sharding\.kernel dense"):
        check("adam")
    for name in ("lamb", "partial_rowwise_adam"):
        for device in (CPU, CUDA):
            with pytest.raises(UserError, match=f"{name} runs only fused"):
                check(name, device=device, dense_kernel=True)


def test_decay_is_refused_where_it_would_be_ignored_or_reach_every_row():
    for name in ("rowwise_adagrad", "adam", "lamb", "partial_rowwise_adam"):
        check(name, device=CUDA, weight_decay=0.1)
    for name, device in (("sgd", CUDA), ("adagrad", CUDA), ("sgd", CPU), ("adagrad", CPU), ("rowwise_adagrad", CPU)):
        with pytest.raises(UserError, match=rf"weight-decay is 0.1, but FBGEMM has none for {name} on {device.type}"):
            check(name, device=device, weight_decay=0.1)
    for name in ("sgd", "adagrad", "rowwise_adagrad", "adam"):
        with pytest.raises(UserError, match="it would decay every row"):
            check(name, dense_kernel=True, weight_decay=0.1)
    check("adam", dense_kernel=True, weight_decay=0.1, decay_whole_tables=True)
    for name, dense_kernel in (("adam", False), ("adagrad", True)):
        with pytest.raises(UserError, match=f"decay-whole-tables is set, but {name} does not decay rows that were not"):
            check(name, device=CUDA, dense_kernel=dense_kernel, weight_decay=0.1, decay_whole_tables=True)
    with pytest.raises(UserError, match="would change a task's table rows without its label"):
        check("adam", dense_kernel=True, weight_decay=0.1, decay_whole_tables=True, labels_missing=True)


def test_lamb_without_decay_would_divide_by_the_length_of_a_step_that_is_zero():
    with pytest.raises(
        UserError, match=r"^--sparse.weight-decay is 0, but must be above 0 for lamb, or FBGEMM divides"
    ):
        check("lamb", device=CUDA)


def test_an_optimizer_that_moves_rows_without_a_label_needs_an_option():
    for name in ("adam", "partial_rowwise_adam"):
        with pytest.raises(UserError, match=rf"the moments of {name} would .* --sparse.update-unlabeled-rows"):
            check(name, device=CUDA, labels_missing=True)
        check(name, device=CUDA, labels_missing=True, update_unlabeled_rows=True)
    for name in ("rowwise_adagrad", "lamb"):
        with pytest.raises(UserError, match=r"--sparse.weight-decay 0.1 would .* --sparse.update-unlabeled-rows"):
            check(name, device=CUDA, labels_missing=True, weight_decay=0.1)
        check(name, device=CUDA, labels_missing=True, weight_decay=0.1, update_unlabeled_rows=True)
    with pytest.raises(UserError, match=r"--sparse\.eps is 0"):
        check("adagrad", eps=0)


def test_a_learning_rate_of_an_unknown_group_is_refused():
    config = SparseOptimizerConfig(group_learning_rates={"shared": 0.1, "likes": 0.1})
    with pytest.raises(UserError, match="group 'likes'; the groups are finish, like, shared"):
        apply_sparse_optimizer(build_model(MODEL, COLUMNS), config)


@pytest.mark.parametrize(
    ("config", "factors"),
    [
        (SCHEDULE, [*FACTORS, 0, 0]),
        (ScheduleConfig(), [1] * 8),
        (ScheduleConfig(warmup_steps=1), [1 / 2] + [1] * 7),
        (ScheduleConfig(decay="linear"), [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, 0]),
        (ScheduleConfig(decay="cosine"), [(1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)] + [0, 0]),
        (ScheduleConfig(warmup_steps=9, decay="linear"), [k / 10 for k in range(1, 9)]),
    ],
)
def test_the_schedule_scales_every_learning_rate(config: ScheduleConfig, factors: list[float]):
    parameters = {"a": torch.nn.Parameter(torch.zeros(1)), "b": torch.nn.Parameter(torch.zeros(1))}
    groups = [{"params": [parameters["a"]], "lr": 2.0}, {"params": [parameters["b"]], "lr": 0.5}]
    optimizer = CombinedOptimizer([KeyedOptimizerWrapper(parameters, lambda _: torch.optim.SGD(groups))])
    schedule = RateSchedule(optimizer, config, steps=STEPS)
    for factor in factors:
        # Two products of float64.
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2 * factor, factor / 2], rel=1e-12)
        optimizer.step()
        schedule.step()


def run_config(optimizer: str, sharding_type: str) -> TrainConfig:
    if optimizer == "sgd":
        rates = {"like": 2.0, "shared": 10.0}
        return config_of(optimizer, sharding_type, learning_rate=5.0, group_learning_rates=rates)
    # A large eps, so that no division magnifies rounding.
    rates = {"like": 0.05, "shared": 0.4}
    return config_of(optimizer, sharding_type, learning_rate=0.2, group_learning_rates=rates, eps=1e-4)


CASES = [("sgd", "table_wise"), ("sgd", "data_parallel"), ("rowwise_adagrad", "row_wise"), ("adam", "data_parallel")]


def train_with_schedule() -> dict[tuple[str, str], tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Weights before and after the steps, by case."""
    outcomes = {}
    for case in CASES:
        run = Run.build(run_config(*case))
        before = run.weights()
        schedule = RateSchedule(run.optimizer, SCHEDULE, steps=STEPS)
        iterator = iter(of_this_rank(batches_of_ranks(STEPS, 1)))
        for _ in range(STEPS):
            run.pipeline.progress(iterator)
            schedule.step()
        outcomes[case] = before, run.weights()
    return outcomes


def step_with_rates() -> dict[str, dict[str, Tensor]]:
    """How far SGD moves each table in one step, with one learning rate and with one for each group."""
    moves = {}
    for name, rates in {"one": {}, "each": {"like": 0.25, "shared": 4.0}}.items():
        run = Run.build(config_of("sgd", "table_wise", learning_rate=1.0, group_learning_rates=rates))
        before = run.weights()
        run.train(of_this_rank(batches_of_ranks(1, 1)))
        moves[name] = {table: weight - before[table] for table, weight in run.weights().items() if TABLES in table}
    return moves


def step_with_factors() -> dict[str, dict[str, Tensor]]:
    """How far a step with a schedule moves each weight, with and without factors by group."""
    moves = {}
    for name, factors in (("without", {}), ("with", {"shared": 0.5, "like": 4.0})):
        config = run_config("sgd", "table_wise")
        run = Run.build(dataclasses.replace(config, train=LoopConfig(rate_factors=factors)))
        RateSchedule(run.optimizer, SCHEDULE, steps=STEPS, made=1)
        # Pushes the learning rates into the fused tables.
        run.optimizer.zero_grad()
        before = run.weights()
        run.train(of_this_rank(batches_of_ranks(1, 1)))
        moves[name] = {key: weight - before[key] for key, weight in run.weights().items()}
    return moves


def clip() -> dict[float | None, tuple[dict[str, float], dict[str, Tensor]]]:
    """Norms of the dense gradients of a step by owner, and the weights after it, by the norm that clipping allows."""
    outcomes = {}
    for norm in (None, 1e-3, 1e3):
        config = run_config("sgd", "data_parallel")
        run = Run.build(dataclasses.replace(config, train=dataclasses.replace(config.train, clip_norm=norm)))
        run.train(of_this_rank(batches_of_ranks(1, 1)))
        gradients: dict[str, list[Tensor]] = {}
        for name, p in run.model.named_parameters():
            if TABLES not in name:
                [owner] = {*COLUMNS.labels, "shared"} & set(name.split("."))
                gradients.setdefault(owner, []).append(p.grad.flatten())
        norms = {owner: torch.cat(parts).norm().item() for owner, parts in gradients.items()}
        outcomes[norm] = norms, run.weights()
    return outcomes


def decay() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tables before and after a step of Adam with L2 on all of their rows."""
    config = config_of("adam", "auto", weight_decay=DECAY, decay_whole_tables=True)
    run = Run.build(dataclasses.replace(config, sharding=ShardingConfig(kernel="dense")))
    before = run.weights()
    run.train(of_this_rank(batches_of_ranks(1, 1)))
    return before, run.weights()


@functools.cache
def results() -> tuple:
    [result] = run_ranks(1, _facts)
    return result


def _facts() -> tuple:
    return train_with_schedule(), step_with_rates(), clip(), step_with_factors(), decay()


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_group_rates_and_schedule_apply_in_the_right_step(case: tuple[str, str]):
    before, after = results()[0][case]
    expected = train_by_hand(before, batches_of_ranks(STEPS, 1), COLUMNS.labels, run_config(*case), FACTORS)
    for name, weight in after.items():
        # Rounding of weights of up to 2, and of gradients that Adam divides by; see test_sharded.
        torch.testing.assert_close(
            weight, expected[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_group_learning_rates_move_their_tables_in_their_ratio():
    moves = results()[1]
    for table, move in moves["one"].items():
        group = table.removeprefix(f"{TABLES}.").split("/")[0]
        assert move.abs().max() > 1e-4
        # A weight of up to 2 rounds at 1e-7.
        expected = {"finish": 1.0, "like": 0.25, "shared": 4.0}[group] * move
        torch.testing.assert_close(moves["each"][table], expected, rtol=0, atol=1e-6)


def test_adam_with_l2_on_whole_tables_moves_rows_that_were_not_looked_up():
    before, after = results()[4]
    [[batch]] = batches_of_ranks(1, 1)
    seen = batch.sparse_features.to_dict()
    rate, eps = 0.1, SparseOptimizerConfig().eps
    others = 0
    for name in (name for name in before if TABLES in name):
        rest = torch.ones(len(before[name]), dtype=torch.bool)
        rest[seen[name.rpartition("/")[2].removesuffix(".weight")].values()] = False
        # The gradient of half the squared norm, times the decay; in the first step both moments are corrected to it.
        gradient = DECAY * before[name][rest]
        expected = before[name][rest] - rate * gradient / (gradient.abs() + eps)
        torch.testing.assert_close(after[name][rest], expected, rtol=0, atol=1e-6)  # fp32 of weights of up to 2.
        others += int(rest.sum())
    assert others > 0


def test_factors_by_group_scale_the_rates_of_tables_and_dense_part_beside_rates_by_group_and_schedule():
    moves = results()[3]
    for name, move in moves["without"].items():
        [owner] = {*COLUMNS.labels, "shared"} & set(name.replace("/", ".").split("."))
        factor = {"finish": 1.0, "like": 4.0, "shared": 0.5}[owner]
        assert move.abs().max() > 1e-5
        # A weight of up to 2 rounds at 1e-7, before its move is scaled.
        torch.testing.assert_close(moves["with"][name], factor * move, rtol=1e-5, atol=1e-6)


def test_clipping_scales_the_dense_gradient_of_each_set_of_tasks_and_leaves_the_tables_alone():
    free, clipped, loose = (results()[2][norm] for norm in (None, 1e-3, 1e3))
    assert set(free[0]) == {"finish", "like", "shared"}
    assert min(free[0].values()) > 1e-2
    for norm in clipped[0].values():
        # PyTorch divides by the norm plus 1e-6.
        assert norm == pytest.approx(1e-3, rel=1e-4)
    assert loose[0] == free[0]
    for name in free[1]:
        if TABLES in name:
            assert torch.equal(free[1][name], clipped[1][name])


def notes_of_cut_tables() -> list[list[str]]:
    """The notes that building a model prints, by optimizer and sharding type."""
    notes = []
    for case in (("rowwise_adagrad", "column_wise"), ("rowwise_adagrad", "row_wise"), ("adagrad", "column_wise")):
        with redirect_stdout(StringIO()) as out:
            Run.build(config_of(*case))
        notes.append([line for line in out.getvalue().splitlines() if line.startswith("note:")])
    return notes


def test_a_note_tells_that_tables_cut_by_columns_learn_differently_with_a_number_per_row():
    first, other = run_ranks(2, notes_of_cut_tables)
    [[note], *nothing] = first
    assert note.startswith("note: rowwise_adagrad keeps a number per row and column shard, so ")
    assert "finish/" in note
    assert note.endswith(" learn differently")
    assert nothing == [[], []]
    assert other == [[], [], []]
    # On one rank the tables of column_wise stay whole.
    assert run_ranks(1, notes_of_cut_tables) == [[[], [], []]]
