import dataclasses
import math
from collections.abc import Iterable
from itertools import product

import pytest
import torch
from torch import Tensor

from stem_torchrec.config.files import config_from_dict
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.config.yaml_text import parse_yaml, to_yaml
from stem_torchrec.data.files import Columns
from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.metrics.multi_task import TaskMetrics
from stem_torchrec.models.build import build_model
from stem_torchrec.models.loss import MultiTaskTrain, multi_task_loss
from stem_torchrec.models.stem import STEM, STEMOptions
from stem_torchrec.models.table import all_options
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import embedding_bag_configs, groups_of
from stem_torchrec.training.configuration import config_from_command_line
from stem_torchrec.training.early_stopping import EarlyStopping
from stem_torchrec.training.watched_metric import WatchedMetric

from reference import TABLES, logits_by_formula, loss_by_formula, random_batch, sparse_features

TASKS = ("finish", "like", "share")
# Single-precision sums of some dozen terms in another order differ by 1e-7 to 1e-6 of their largest term.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


def columns_of(tasks: int, *, dense: int = 2) -> Columns:
    return Columns(
        sparse=sparse_features(uid=11, tags=7, tab=3),
        dense=tuple(f"dense_{i}" for i in range(dense)),
        labels=TASKS[:tasks],
        group=None,
    )


def small(**changes) -> STEMOptions:
    config = STEMOptions(
        embedding_dim=4,
        num_shared_experts=3,
        num_task_experts=2,
        expert_hidden=(16, 8),
        gate_hidden=(6,),
        tower_hidden=(5,),
    )
    return dataclasses.replace(config, **changes)


def build(config: STEMOptions, columns: Columns, *, seed: int = 0) -> STEM:
    """STEM on CPU with tables and biases large enough that every gradient shows."""
    torch.manual_seed(seed)
    model = build_model(dataclasses.replace(config, embedding_std=1.0), columns, table_device="cpu").model
    assert isinstance(model, STEM)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model: STEM, loss: Tensor) -> dict[str, Tensor | None]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


def owner(parameter: str) -> str:
    """The group that a parameter belongs to: `layers.0.experts.like.…` and `….like/uid.weight` to like."""
    return next(group for group in (*TASKS, "shared") if group in parameter.replace("/", ".").split("."))


def assert_equals_formula(config: STEMOptions, columns: Columns) -> None:
    model, batch = build(config, columns), random_batch(1, columns)
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    logits = model(batch.dense_features, batch.sparse_features)
    expected = logits_by_formula(weights, batch, columns.labels, config)
    torch.testing.assert_close(logits, expected, **ROUNDING)
    # Random factors give every logit a gradient of its own.
    factors = torch.randn(logits.shape)
    # Raises if the formula does not use a parameter.
    expected_gradients = torch.autograd.grad((expected * factors).sum(), list(weights.values()))
    for (name, gradient), other in zip(
        gradients(model, (logits * factors).sum()).items(), expected_gradients, strict=True
    ):
        torch.testing.assert_close(gradient, other, **ROUNDING, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_logits_and_gradients_are_those_of_the_equations(num_layers: int, tasks: int):
    for shared, own in [(3, 2), (1, 1), (1, 3)]:
        config = small(num_layers=num_layers, num_shared_experts=shared, num_task_experts=own)
        assert_equals_formula(config, columns_of(tasks))
    assert_equals_formula(small(num_layers=num_layers), columns_of(tasks, dense=0))


@pytest.mark.parametrize("gate_input", ["task", "shared"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_gate_may_decide_by_its_task_or_by_what_is_shared(num_layers: int, gate_input: str):
    assert_equals_formula(small(num_layers=num_layers, gate_input=gate_input), columns_of(3))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_bf16_products_stay_near_the_equations(num_layers: int):
    """The equations with products in bf16 are off by as much as rounding takes; so may the model be, and a little more.

    Logits are sums of many rounded products, so a fifth more is much. The error of the gradients is that of the few
    units whose ReLU rounding turns over; over eight draws it still varies by a third.
    """
    config = small(num_layers=num_layers, expert_hidden=(64, 64, 64), gate_hidden=(32, 16), tower_hidden=(32, 16))
    columns = columns_of(2)
    of_model, of_formula = [], []
    for seed in range(8):
        model, batch = build(config, columns, seed=seed), random_batch(seed, columns, rows=256)
        weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        exact = logits_by_formula(weights, batch, columns.labels, config)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch.dense_features, batch.sparse_features).float()
            rounded = logits_by_formula(weights, batch, columns.labels, config).float()
        assert 0 < distance(logits, exact) < 1.2 * distance(rounded, exact)
        factors = torch.randn(logits.shape)
        by_formula, expected = (
            torch.autograd.grad((z * factors).sum(), list(weights.values())) for z in (rounded, exact)
        )
        ours = gradients(model, (logits * factors).sum()).values()
        assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in ours)
        of_model.append(distance(flat(ours), flat(expected)))
        of_formula.append(distance(flat(by_formula), flat(expected)))
    assert 0 < sum(of_model) < 1.5 * sum(of_formula)


def distance(a: Tensor, b: Tensor) -> float:
    """Between a and b, by the length of b."""
    return ((a - b).norm() / b.norm()).item()


def flat(tensors: Iterable[Tensor | None]) -> Tensor:
    """All of them, one after the other."""
    return torch.cat([tensor.flatten() for tensor in tensors if tensor is not None])


@pytest.mark.parametrize("reads", ["all", "own_shared"])
@pytest.mark.parametrize("trains", ["all", "own_shared"])
def test_reads_and_trains_do_what_their_names_say(reads: str, trains: str):
    for num_layers, shared in product([1, 2, 3], [1, 3]):
        config = small(num_layers=num_layers, num_shared_experts=shared, reads=reads, trains=trains)
        assert_equals_formula(config, columns_of(3))


def test_bags_are_summed_in_the_order_of_the_features_and_empty_ones_are_zero():
    columns = columns_of(2)
    model, batch = build(small(), columns), random_batch(1, columns)
    tables = model.sparse_arch.embedding_bag_collection.embedding_bags
    tags = batch.sparse_features.to_dict()["tags"].to_dense()
    assert {len(ids) for ids in tags} == {0, 1, 2, 3}
    pooled = model.sparse_arch(batch.sparse_features)
    assert list(pooled) == ["finish", "like", "shared"]
    for group, x in pooled.items():
        for row, ids in enumerate(tags):
            # Columns 4 to 8 belong to the second feature. At most three summands, so two roundings.
            torch.testing.assert_close(x[row, 4:8], tables[f"{group}/tags"].weight[ids].sum(dim=0))


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_other_tasks_tables_get_no_gradient(num_layers: int):
    columns = columns_of(3)
    for reads, own in [("all", 2), ("all", 1), ("own_shared", 2)]:
        # So wide that no tower's ReLUs are all off.
        config = small(num_layers=num_layers, num_task_experts=own, reads=reads, tower_hidden=(32,))
        model = build(config, columns)
        batch = random_batch(1, columns)
        for i, task in enumerate(columns.labels):
            logits = model(batch.dense_features, batch.sparse_features)
            trained = set()
            for name, gradient in gradients(model, logits[:, i].sum()).items():
                if gradient is not None and gradient.count_nonzero() > 0:
                    trained.add(owner(name))
                    assert owner(name) in (task, "shared"), name
            assert trained == {task, "shared"}


def test_training_all_reaches_the_tables_of_other_tasks():
    columns = columns_of(2)
    model, batch = build(small(trains="all"), columns), random_batch(1, columns)
    logits = model(batch.dense_features, batch.sparse_features)
    assert gradients(model, logits[:, 0].sum())[f"{TABLES}.like/uid.weight"].count_nonzero() > 0


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_every_parameter_gets_a_gradient(num_layers: int):
    switches = product(["all", "own_shared"], ["all", "own_shared"], [1, 2, 3], [(1, 1), (2, 1), (1, 2)], [0, 2])
    for reads, trains, tasks, (shared, own), dense in switches:
        config = small(
            num_layers=num_layers,
            num_shared_experts=shared,
            num_task_experts=own,
            # So wide that no layer's ReLUs are all off.
            expert_hidden=(32, 32),
            gate_hidden=(32,),
            tower_hidden=(32,),
            reads=reads,
            trains=trains,
        )
        columns = columns_of(tasks, dense=dense)
        model, batch = build(config, columns), random_batch(1, columns, rows=32)
        logits = model(batch.dense_features, batch.sparse_features)
        for name, gradient in gradients(model, (logits * torch.randn(logits.shape)).sum()).items():
            assert gradient is not None, (name, config)
            assert gradient.count_nonzero() > 0, (name, config)


@pytest.mark.parametrize(
    "tasks", [(), ("shared",), ("a", "a"), ("a.b",), ("a/b",), ("",), ("keys",), ("training",), ("_modules",)]
)
def test_tasks_that_cannot_name_a_group_are_refused(tasks: tuple[str, ...]):
    with pytest.raises(UserError, match="task"):
        groups_of(tasks)


def test_tables_that_cannot_be_made_are_refused():
    for dim in (-4, 0, 2, 6):
        with pytest.raises(UserError, match=rf"embedding dimension is {dim}\b"):
            embedding_bag_configs([SparseFeature("uid", 5)], ["a", "shared"], embedding_dim=dim)
    for name in ("a.b", "a@b"):
        with pytest.raises(UserError, match=f"sparse feature cannot be called '{name}'"):
            embedding_bag_configs([SparseFeature(name, 5)], ["a", "shared"])


def test_a_model_without_layers_or_experts_is_refused():
    for changes in ({"num_layers": 0}, {"num_shared_experts": 0}, {"num_task_experts": 0}, {"expert_hidden": ()}):
        with pytest.raises(UserError, match="at least 1"):
            build(small(**changes), columns_of(2))


def test_one_weight_above_zero_is_asked_for_each_task():
    for weights in ((1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, 2.0, 3.0)):
        with pytest.raises(UserError, match=r"--model.task-weights .* finish, like"):
            build_model(small(task_weights=weights), columns_of(2))


def test_weights_of_tasks_are_given_in_their_order_or_by_name():
    for weights, expected in (((3.0, 2.0), [3, 2]), ({"like": 3.0}, [1, 3]), ({"*": 2.0, "finish": 3.0}, [3, 2])):
        assert build_model(small(task_weights=weights), columns_of(2)).task_weights.tolist() == expected
    assert build_model(small(task_weights={}), columns_of(2)).task_weights is None
    with pytest.raises(UserError, match=r"--model.task-weights names the task 'lik', .* finish, like; did you mean"):
        build_model(small(task_weights={"lik": 3.0}), columns_of(2))
    given = [config_from_command_line(["--model.task-weights", *args.split()]) for args in ("3 2", "like 3 * 2")]
    assert [config.model.task_weights for config in given] == [(3.0, 2.0), {"like": 3.0, "*": 2.0}]
    for config in given:
        assert config_from_dict(parse_yaml(to_yaml(to_dict(config))), all_options()) == config
    with pytest.raises(UserError, match=r"--model.task-weights is 0.0, but must be above 0 and at most 1e\+06\."):
        config_from_command_line(["--model.task-weights", "like", "0"])


def test_a_task_without_labels_adds_nothing_to_the_loss():
    logits = torch.randn(5, 2, requires_grad=True)
    labels = torch.tensor([[1.0, 0.0, 1.0, math.nan, 0.0], [math.nan] * 5]).T
    losses = multi_task_loss(logits, labels)
    assert losses[1] == 0
    # The same float32 terms, summed in another order.
    torch.testing.assert_close(losses[0], loss_by_formula(logits[:, :1], labels[:, :1]), rtol=1e-6, atol=0)
    [gradient] = torch.autograd.grad(losses.sum(), logits)
    assert gradient[:, 1].eq(0).all()
    assert gradient[3, 0] == 0
    assert gradient[[0, 1, 2, 4], 0].ne(0).all()


def test_the_loss_is_the_weighted_sum_of_the_means_over_labeled_rows():
    columns = columns_of(3)
    batch = random_batch(3, columns)
    assert 0 < batch.labels.isnan().sum() < batch.labels.numel()
    for weights in ((), (0.5, 1.0, 2.0)):
        train = MultiTaskTrain(build(small(), columns), weights)
        loss, (losses, logits) = train(batch)
        torch.testing.assert_close(loss, loss_by_formula(logits, batch.labels, weights), **ROUNDING)
        for t in range(3):
            torch.testing.assert_close(losses[t], loss_by_formula(logits[:, [t]], batch.labels[:, [t]]), **ROUNDING)
        assert not losses.requires_grad
        assert not logits.requires_grad


def metrics_with(**values: float) -> TaskMetrics:
    return dataclasses.replace(TaskMetrics(**{field.name: 0 for field in dataclasses.fields(TaskMetrics)}), **values)


def test_early_stopping_keeps_the_best_mean_and_counts_the_evaluations_since():
    for metric, sign in (("auc", 1), ("logloss", -1)):
        stopping = EarlyStopping(WatchedMetric(metric, ("a", "b")), 2)
        better, stop = [], []
        for a, b in [(0.5, 0.5), (0.5, 0.75), (0.75, 0.5), (1.0, 0.0), (0.125, 0.125)]:
            a, b = (a, b) if sign == 1 else (-a, -b)
            better.append(stopping.better({"a": metrics_with(**{metric: a}), "b": metrics_with(**{metric: b})}))
            stop.append(stopping.stop)
        assert better == [True, True, False, False, False]
        assert stop == [False, False, False, True, True]
