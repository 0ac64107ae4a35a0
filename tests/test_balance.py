"""Balanced tasks in a step: what the shared tables get, on any number of ranks, and that nothing else changes."""

import dataclasses
import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.balance.balance import balance_state, balance_values
from stem_torchrec.balance.task_gradients import cagrad, gradcraft, mgda, pcgrad
from stem_torchrec.checkpoints.folder import checkpoint_path
from stem_torchrec.checkpoints.saver import CheckpointSaver
from stem_torchrec.checkpoints.state import restore_state, training_state
from stem_torchrec.config import BalanceConfig, LoopConfig, ShardingConfig, TrainConfig
from stem_torchrec.models.balanced import balance_tasks
from stem_torchrec.models.build import build_model
from stem_torchrec.models.loss import MultiTaskTrain
from stem_torchrec.models.table import MODELS, with_arch
from stem_torchrec.models.weight_groups import freeze, group_of
from stem_torchrec.runtime.errors import UserError

from distributed import run_ranks
from reference import COLUMNS, TABLES, random_batch
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank, progress_after, with_labels_of

GROUPS = (*COLUMNS.labels, "shared")
L2 = dataclasses.replace(MODEL, embedding_l2=0.1)
METHODS = {
    "pcgrad": BalanceConfig(gradients="pcgrad"),
    "cagrad": BalanceConfig(gradients="cagrad"),
    "mgda": BalanceConfig(gradients="mgda"),
    "gradcraft": BalanceConfig(gradients="gradcraft", weights="uncertainty", rate=0.1, memory=0.9),
    "pareto": BalanceConfig(gradients="pcgrad", weights="pareto"),
    "dwa": BalanceConfig(weights="dwa", period=2),
}
"""Each method, and some together."""
STEPS = 6
Weights = dict[str, Tensor]


def build(balance: BalanceConfig, arch: str = "stem", *, embedding_l2: float = 0.0) -> MultiTaskTrain:
    torch.manual_seed(0)
    config = with_arch(dataclasses.replace(MODEL, embedding_l2=embedding_l2), arch)
    train = build_model(config, COLUMNS, table_device="cpu")
    balance_tasks(train, balance)
    return train


def gradients_of(train: MultiTaskTrain, *, task: int | None = None, scale: float = 1.0) -> Weights:
    """The gradients of a step by parameter; of one task's labels alone, if one is given."""
    train.zero_grad()
    batch = random_batch(0, missing=0.1)
    [batch] = [batch] if task is None else with_labels_of(task, [batch])
    (scale * train(batch)[0]).backward()
    return {name: parameter.grad.clone() for name, parameter in train.named_parameters() if parameter.grad is not None}


def at_shared_output(task: int) -> Tensor:
    """The gradient of one task's loss at the pooled output of the shared tables."""
    train = build(BalanceConfig())
    pooled = []
    train.model.sparse_arch.register_forward_hook(lambda module, args, x: pooled.append(x["shared"]))
    loss, _ = train(*with_labels_of(task, [random_batch(0, missing=0.1)]))
    return torch.autograd.grad(loss, pooled[0])[0]


@pytest.mark.parametrize("method", ["pcgrad", "cagrad", "mgda", "gradcraft"])
def test_shared_tables_get_the_combination_and_all_else_the_same_bits(method: str) -> None:
    config = BalanceConfig(gradients=method, magnitude=0.7)
    of_tasks = torch.stack([at_shared_output(task).flatten() for task in range(2)]).double().numpy()
    gram = of_tasks @ of_tasks.T
    shares = {
        "pcgrad": lambda: pcgrad(gram, 0),
        "cagrad": lambda: cagrad(gram, config.caution),
        "mgda": lambda: mgda(gram),
        "gradcraft": lambda: gradcraft(gram, np.sqrt(gram.diagonal()), config.magnitude, config.margin),
    }[method]()
    plain, balanced = gradients_of(build(BalanceConfig())), gradients_of(train := build(config))
    assert balance_values(train, COLUMNS.labels) == pytest.approx(
        {f"balance/shares/{task}": share for task, share in zip(COLUMNS.labels, shares, strict=True)}, rel=1e-4
    )
    alone = [gradients_of(build(BalanceConfig()), task=task) for task in range(2)]
    for name, gradient in plain.items():
        if f"{TABLES}.shared/" in name:
            combined = sum(share * each[name] for share, each in zip(shares.tolist(), alone, strict=True))
            # Sums of single-precision gradients in another order.
            assert torch.allclose(balanced[name], combined, rtol=1e-4, atol=1e-7)
            assert not torch.equal(balanced[name], gradient)
        else:
            assert torch.equal(balanced[name], gradient), name


def test_gradcraft_takes_the_lengths_of_the_step_alone_unless_it_has_a_memory() -> None:
    of_tasks = torch.stack([at_shared_output(task).flatten() for task in range(2)]).double().numpy()
    gram = of_tasks @ of_tasks.T
    default = BalanceConfig(gradients="gradcraft")
    shares = gradcraft(gram, np.sqrt(gram.diagonal()), default.magnitude, default.margin)
    for config in (default, dataclasses.replace(default, memory=0.9)):
        train = build(config)
        train(random_batch(1))
        gradients_of(train)
        of_step = list(balance_values(train, COLUMNS.labels).values())
        assert (of_step == pytest.approx(shares, rel=1e-4)) == (config == default)


def test_the_penalty_on_embeddings_is_no_part_of_the_tasks_gradients() -> None:
    config = BalanceConfig(gradients="mgda")
    without, penalized = build(config), build(config, embedding_l2=0.1)
    difference = gradients_of(penalized)
    assert balance_values(penalized, COLUMNS.labels) != balance_values(build(config), COLUMNS.labels)
    plain = gradients_of(build(BalanceConfig(), embedding_l2=0.1))
    for name, gradient in gradients_of(without).items():
        if f"{TABLES}.shared/" in name:
            added = plain[name] - gradients_of(build(BalanceConfig()))[name]
            assert torch.allclose(difference[name] - gradient, added, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_scaled_scales_what_the_shared_tables_get() -> None:
    config = BalanceConfig(gradients="pcgrad")
    once, scaled = gradients_of(build(config)), gradients_of(build(config), scale=1024.0)
    for name, gradient in once.items():
        assert torch.equal(1024 * gradient, scaled[name]), name


@pytest.mark.parametrize("arch", [arch for arch in MODELS if arch not in ("stem", "single_task")])
def test_every_model_with_shared_tables_is_balanced(arch: str) -> None:
    plain, balanced = gradients_of(build(BalanceConfig(), arch)), gradients_of(build(METHODS["mgda"], arch))
    differing = {name for name, gradient in plain.items() if not torch.equal(balanced[name], gradient)}
    assert differing == {name for name in plain if f"{TABLES}.shared/" in name}


def test_models_without_trained_shared_tables_are_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"--balance.gradients is pcgrad.*but SingleTask has none; leave it out"):
        build(BalanceConfig(gradients="pcgrad"), "single_task")
    with pytest.raises(UserError, match=r"--balance.weights is pareto.*but SingleTask has none; leave it out"):
        build(BalanceConfig(weights="pareto"), "single_task")
    build(BalanceConfig(weights="dwa"), "single_task")
    train = build(BalanceConfig())
    freeze(train.model, ["shared"])
    with pytest.raises(UserError, match=r"--train.freeze does not train them; leave one of both out"):
        balance_tasks(train, BalanceConfig(gradients="pcgrad"))


def test_a_period_of_an_epoch_is_refused_where_nobody_knows_its_steps() -> None:
    with pytest.raises(UserError, match=r"--balance.period is 0, an epoch, whose steps only a run knows; give a numb"):
        build(BalanceConfig(weights="dwa", period=0))


def test_a_forward_pass_without_gradients_learns_nothing() -> None:
    train = build(METHODS["gradcraft"])
    before = {name: values.clone() for name, values in balance_state(train).items()}
    with torch.no_grad():
        train(random_batch(0))
    assert all(torch.equal(values, before[name]) for name, values in balance_state(train).items())


def config_with(method: str, *, sharding: str = "table_wise", **train: object) -> TrainConfig:
    config = config_of("sgd", sharding, model=L2)
    return dataclasses.replace(config, balance=METHODS[method], train=LoopConfig(**train))


def train_methods() -> dict[str, tuple[Weights, Weights]]:
    """The weights and the state of balancing after some steps, by method."""
    batches = of_this_rank(batches_of_ranks(STEPS, dist.get_world_size(), missing=0.3))
    trained = {}
    for method in METHODS:
        config = config_with(method)
        if method == "cagrad" and dist.get_world_size() == 2:
            # One rank has no shared table.
            rules = ("shared/*=table_wise:rank=0", "*=table_wise:rank=1")
            config = dataclasses.replace(config, sharding=ShardingConfig(rules=rules))
        run = Run.build(config)
        run.train(batches)
        trained[method] = run.weights(), dict(balance_state(run.model))
    return trained


@functools.cache
def trained_on(ranks: int) -> list[dict[str, tuple[Weights, Weights]]]:
    return run_ranks(ranks, train_methods)


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_train_and_learn_as_one_does(method: str) -> None:
    [one], two = trained_on(1), trained_on(2)
    for part, of_both in zip(one[method], zip(*(rank[method] for rank in two), strict=True), strict=True):
        for name, value in part.items():
            first, second = (each[name] for each in of_both)
            assert torch.equal(first, second), name
            # Sums over the rows in another order, in single precision, over some steps.
            assert torch.allclose(first, value, rtol=1e-3, atol=1e-5), name


def resume(folder: Path) -> list[str]:
    """What differs between a run and one that resumes in the middle, of methods with a state."""
    batches = of_this_rank(batches_of_ranks(STEPS, dist.get_world_size(), missing=0.3))
    differing = []
    for method in ("gradcraft", "pareto", "dwa"):
        config = dataclasses.replace(config_with(method), balance=METHODS[method])
        whole = Run.build(config)
        whole.train(batches[:3])
        saver = CheckpointSaver(str(folder / method))
        saver.save(training_state(whole.model, whole.optimizer, torch.zeros(6)), progress_after(3), wait=True)
        saver.close()
        resumed = Run.build(config)
        path = checkpoint_path(str(folder / method), 3)
        restore_state(resumed.model, resumed.optimizer, path, step=3, tasks=2, same_ranks=True)
        for run in (whole, resumed):
            run.train(batches[3:])
        ended, again = (each.weights() | balance_state(each.model) for each in (whole, resumed))
        assert not any("balance" in name for name in whole.model.state_dict())
        differing += [f"{method} {name}" for name, value in ended.items() if not torch.equal(value, again[name])]
    return differing


def test_a_run_that_resumes_goes_through_the_same_bits() -> None:
    with TemporaryDirectory() as folder:
        assert run_ranks(2, resume, Path(folder)) == [[], []]


def one_task() -> tuple[list[set[str]], list[str], bool]:
    """The groups that steps on each task's labels change; what a batch without a finite loss changes; bf16 works."""
    run, batches = Run.build(config_with("pcgrad", skip_nonfinite=True)), of_this_rank(batches_of_ranks(4, 2))
    run.train(batches[:2])
    changed = []
    for task in range(2):
        before = run.weights()
        run.train(with_labels_of(task, batches[2:3]))
        changed.append(
            {group_of(name, GROUPS) for name, value in run.weights().items() if not torch.equal(value, before[name])}
        )
    before = run.weights() | {name: value.clone() for name, value in balance_state(run.model).items()}
    batches[3].dense_features[0, 0] = torch.inf
    run.train(batches[3:])
    after = run.weights() | balance_state(run.model)
    touched = [name for name, value in after.items() if not torch.equal(value, before[name])]
    low = Run.build(config_with("pareto", precision="bf16"))
    losses = low.train(batches[:2])
    return changed, touched, all(bool(loss.isfinite().all()) for loss, _ in losses)


def test_tasks_stay_apart_and_a_skipped_batch_touches_nothing() -> None:
    for changed, touched, is_finite in run_ranks(2, one_task):
        assert changed == [{"finish", "shared"}, {"like", "shared"}]
        assert touched == []
        assert is_finite
