"""The losses of tasks: each is its equation, on any number of ranks, and the default is what it was to the bit."""

import dataclasses
import math
from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.checkpoints.compatibility import check_same_run
from stem_torchrec.config import DenseOptimizerConfig, LossConfig, TrainConfig, dump_config
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.config.yaml_text import parse_yaml
from stem_torchrec.data.label_counts import LabelCounter, WeightedBatch
from stem_torchrec.losses import pairs as pairs_module
from stem_torchrec.losses.table import LOSSES, TaskLoss, losses_of_tasks, of_some_tasks
from stem_torchrec.losses.task_losses import task_losses
from stem_torchrec.models.build import build_model
from stem_torchrec.models.loss import groups_of_rows, multi_task_loss
from stem_torchrec.models.trained_by import tasks_of_parameters
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.configuration import config_from_command_line

from distributed import run_ranks
from reference import COLUMNS, TABLES, random_batch
from runs import MODEL, Run, config_of

TASKS = ("finish", "like")
KINDS = {"finish": "jrc", "like": "pairs"}
BINARY = [kind for kind, loss in LOSSES.items() if loss.labels == "binary"]


def rows_of(seed: int = 0, rows: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels of which some are missing, weights of which some are 0, and groups, with one that has no id."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 2, generator=random, dtype=torch.float64) * 3
    labels = torch.randint(2, (rows, 2), generator=random).double()
    labels[torch.rand(rows, 2, generator=random) < 0.2] = torch.nan
    weights = torch.rand(rows, 2, generator=random, dtype=torch.float64)
    weights[torch.rand(rows, 2, generator=random) < 0.1] = 0
    return logits, labels, weights, torch.randint(-1, 6, (rows,), generator=random)


def logistic(x: float) -> float:
    return math.log1p(math.exp(-x))


def of_row(task: TaskLoss, z: float, y: float) -> float:
    """The equation of a row, with the positive weight."""
    z, counts = z + math.log(task.positive_weight), task.positive_weight if y else 1
    q = 1 / (1 + math.exp(-z if y else z))
    match task.kind:
        case "focal":
            return -counts * (1 - q) ** task.focal_gamma * math.log(q)
        case "smoothed":
            target = y * (1 - task.smoothing) + task.smoothing / 2
            return counts * (target * logistic(z) + (1 - target) * logistic(-z))
        case _:
            return -counts * math.log(q)


def of_step(kind: str, z: list[float], y: list[float], w: list[float], g: list[int]) -> float:
    """The equation of pairs or of JRC, of rows that have a label, a weight and a group."""
    rows = range(len(z))
    if kind == "pairs":
        terms = [(w[i] * w[j], logistic(z[i] - z[j])) for i, j in product(rows, rows) if y[i] > y[j] and g[i] == g[j]]
        return sum(weight * loss for weight, loss in terms) / sum(weight for weight, _ in terms)
    total = 0.0
    for i in rows:
        sign = 0.5 if y[i] else -0.5
        context = sum(w[j] * math.exp(sign * z[j]) for j in rows if g[j] == g[i])
        total += w[i] * (math.log(context) - sign * z[i])
    return total / sum(w)


def by_equation(task: TaskLoss, z: Tensor, y: Tensor, w: Tensor, g: Tensor) -> float:
    known = [i for i in range(len(z)) if not y[i].isnan() and w[i] > 0]
    mean = sum(float(w[i]) * of_row(task, float(z[i]), float(y[i])) for i in known) / sum(float(w[i]) for i in known)
    if LOSSES[task.kind].of_step is None:
        return mean
    compared = [i for i in known if g[i] >= 0]
    columns = [[values[i].item() for i in compared] for values in (z, y, w, g)]
    return task.pointwise * mean + (1 - task.pointwise) * of_step(task.kind, *columns)


@pytest.mark.parametrize("kind", BINARY)
@pytest.mark.parametrize("variant", ["plain", "weights and groups", "positive weight"])
def test_each_loss_is_its_equation_and_its_gradient_is_that_of_the_equation(
    kind: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs_module, "PAIRS_AT_ONCE", 50)  # Several blocks.
    logits, labels, weights, groups = rows_of()
    other = TaskLoss("focal", focal_gamma=0.5)
    task = TaskLoss(kind, 4.0 if variant == "positive weight" else 1.0, focal_gamma=1.5, smoothing=0.2, pointwise=0.3)
    given, columns = {}, [torch.ones_like(weights), torch.zeros_like(groups)]
    if variant == "weights and groups":
        task = dataclasses.replace(task, rows_within="uid")
        given, columns = {"weights": weights, "groups": {"uid": groups}}, [weights, groups]

    def loss(z: Tensor) -> Tensor:
        return task_losses((task, other), torch.stack([z, logits[:, 1]], dim=1), labels, **given)[0]

    z = logits[:, 0].clone().requires_grad_()
    loss(z).backward()
    expected = by_equation(task, logits[:, 0], labels[:, 0], columns[0][:, 0], columns[1])
    assert loss(z).item() == pytest.approx(expected, rel=1e-12)
    for i in (0, 7, 20, 33):
        step = torch.zeros_like(z).index_fill(0, torch.tensor(i), 1e-5)
        below, above = (
            by_equation(task, z.detach() + sign * step, labels[:, 0], columns[0][:, 0], columns[1]) for sign in (-1, 1)
        )
        # Central differences: the square of the step, and rounding over the step.
        assert z.grad[i].item() == pytest.approx((above - below) / 2e-5, abs=1e-9)


def test_logits_of_any_size_leave_every_loss_and_gradient_finite() -> None:
    z = torch.tensor([[200.0], [-200.0], [200.0], [-200.0]], requires_grad=True)
    y = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    for kind, gamma in [*((kind, 2.0) for kind in BINARY), ("focal", 0.5)]:
        [gradient] = torch.autograd.grad(task_losses([TaskLoss(kind, focal_gamma=gamma)], z, y).sum(), z)
        assert gradient.isfinite().all(), kind


def test_without_pairs_or_labels_the_loss_of_a_step_adds_nothing() -> None:
    z = torch.randn(5, 1, requires_grad=True)
    for labels in (torch.zeros(5, 1), torch.ones(5, 1)):
        mean = multi_task_loss(z, labels)
        assert torch.equal(task_losses([TaskLoss("pairs")], z, labels), mean / 2)
    for kind in BINARY:
        loss = task_losses([TaskLoss(kind)], z, torch.full((5, 1), torch.nan))
        [gradient] = torch.autograd.grad(loss.sum(), z)
        assert [loss.item(), gradient.count_nonzero().item()] == [0, 0], kind


def test_a_task_with_the_default_keeps_its_bits_beside_one_with_another_loss() -> None:
    logits, labels, weights, _ = (each.float() for each in rows_of())
    logits.requires_grad_()
    [expected] = torch.autograd.grad(multi_task_loss(logits, labels, weights=weights)[0], logits)
    for kind in BINARY:
        losses = task_losses((TaskLoss(), TaskLoss(kind, 3.0)), logits, labels, weights=weights)
        assert torch.equal(torch.autograd.grad(losses[0], logits)[0], expected)
    assert losses_of_tasks(LossConfig(kinds={"like": "bce"}, positive_weights={"like": 1.0}), TASKS) == ()


def test_logits_trained_with_a_positive_weight_are_those_of_the_log_as_it_is() -> None:
    labels = (torch.arange(1000) < 30).float()[:, None]
    bias = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task_losses([TaskLoss(positive_weight=20.0)], bias.expand(1000, 1), labels.double()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    # Where the line search ends.
    assert bias.sigmoid().item() == pytest.approx(0.03, rel=1e-4)


def test_a_positive_weight_is_the_alpha_of_focal_but_for_a_factor_and_its_logarithm_in_the_logits() -> None:
    logits, labels, _, _ = rows_of()
    alpha, gamma, terms = 0.8, 1.5, []
    for z, y in zip((logits[:, 0] + math.log(4)).tolist(), labels[:, 0].tolist(), strict=True):
        if not math.isnan(y):
            q = 1 / (1 + math.exp(-z if y else z))
            terms.append(-(alpha if y else 1 - alpha) * (1 - q) ** gamma * math.log(q))
    loss = task_losses([TaskLoss("focal", alpha / (1 - alpha), focal_gamma=gamma), TaskLoss()], logits, labels)[0]
    assert loss.item() == pytest.approx(sum(terms) / len(terms) / (1 - alpha))


def train_together(rows_within: str | dict[str, str]) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Losses of three steps, the tables after them, and the dense gradients of the last one."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    loss = LossConfig(KINDS, {"finish": 3.0}, pointwise=0.2, rows_within=rows_within)
    config = config_of("sgd", "row_wise", learning_rate=5.0)
    run = Run.build(dataclasses.replace(config, loss=loss, dense=DenseOptimizerConfig(learning_rate=0.0)))
    part = slice(12 // ranks * rank, 12 // ranks * (rank + 1))
    batches = []
    for step in range(3):
        batch = random_batch(step, rows=12, missing=0.3, part=part)
        if step == 1:
            batch.labels[(torch.arange(12) < 6)[part], 1] = torch.nan
        weights = torch.rand(12, 2, generator=torch.Generator().manual_seed(step))[part]
        batches.append(WeightedBatch(batch.dense_features, batch.sparse_features, batch.labels, weights))
    losses = [losses for losses, _ in run.train(batches)]
    named = run.model.named_parameters()
    gradients = {name: p.grad.clone() for name, p in named if TABLES not in name and p.grad is not None}
    return losses, {name: weight for name, weight in run.weights().items() if TABLES in name}, gradients


@pytest.mark.parametrize("rows_within", [{"like": "tags"}, pytest.param("", marks=pytest.mark.long)])
def test_two_ranks_compare_the_rows_of_both_as_one_process_does(rows_within: str | dict[str, str]) -> None:
    [alone], together = run_ranks(1, train_together, rows_within), run_ranks(2, train_together, rows_within)
    rounding = {"rtol": 1e-5, "atol": 1e-6}  # The same sums of float32 in another order.
    for step, losses in enumerate(alone[0]):
        torch.testing.assert_close(sum(rank[0][step] for rank in together) / 2, losses, **rounding)
    for rank in together:
        torch.testing.assert_close(rank[1:], alone[1:], **rounding)


def losses_of_part(sizes: list[int]) -> tuple[Tensor, Tensor]:
    """The losses and the gradients of this rank's rows, of ranks with so many."""
    logits, labels, weights, groups = (each.split(sizes)[dist.get_rank()] for each in rows_of())
    logits = logits.clone().requires_grad_()
    counts = torch.tensor([7.0, 7.0], dtype=torch.float64)
    tasks = [TaskLoss(KINDS[task], pointwise=0.2, rows_within="uid") for task in TASKS]
    losses = task_losses(tasks, logits, labels, per_rank=counts / len(sizes), weights=weights, groups={"uid": groups})
    losses.sum().backward()
    return losses.detach(), logits.grad


def test_ranks_may_have_different_numbers_of_rows() -> None:
    [(losses, gradient)] = run_ranks(1, losses_of_part, [40])
    together = run_ranks(3, losses_of_part, [29, 11, 0])
    torch.testing.assert_close(sum(each for each, _ in together) / 3, losses)
    torch.testing.assert_close(torch.cat([each for _, each in together]) / 3, gradient)


def test_every_parameter_is_trained_by_the_tasks_that_train_it_with_the_default() -> None:
    def trained(loss: LossConfig) -> dict[str, frozenset[int]]:
        return tasks_of_parameters(build_model(MODEL, COLUMNS, loss), tasks=2, dense_in_features=2)

    for kind in BINARY:
        assert trained(LossConfig(kinds=dict.fromkeys(TASKS, kind))) == trained(LossConfig())


def test_rows_are_compared_within_the_first_id_of_a_feature_unless_it_is_missing_or_unseen() -> None:
    batch = random_batch(0, rows=6)
    lengths, ids = batch.sparse_features["tags"].lengths().tolist(), batch.sparse_features["tags"].values().tolist()
    firsts = [ids[sum(lengths[:i])] if lengths[i] else 0 for i in range(6)]
    assert groups_of_rows(batch, "tags").tolist() == [first or -1 for first in firsts]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            LossConfig(kinds={"likes": "focal"}),
            "--loss.kinds names the task 'likes', but the tasks are finish, like; did",
        ),
        (
            LossConfig(kinds={"like": "focel"}),
            "--loss.kinds has 'focel' for 'like', but must have one of bce, focal, .*; did",
        ),
        (LossConfig(positive_weights={"buy": 2}), "--loss.positive-weights names the task 'buy', but the tasks are"),
        (LossConfig(rows_within="ui"), "--loss.rows-within is 'ui', but the sparse features are uid, tags; did you"),
        (LossConfig(rows_within={"like": "ui"}), "--loss.rows-within is 'ui', but the sparse features are uid, tags;"),
        (LossConfig(rows_within={"buy": "uid"}), "--loss.rows-within names the task 'buy', but the tasks are finish,"),
        (LossConfig(focal_gamma={"likes": 1}), "--loss.focal-gamma names the task 'likes', but the tasks are finish,"),
    ],
)
def test_a_name_that_the_log_lacks_is_answered_by_a_sentence(loss: LossConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(MODEL, COLUMNS, loss)


def test_a_run_resumes_with_its_own_losses_alone_and_one_of_an_earlier_version_with_the_default() -> None:
    config, schema = TrainConfig(loss=LossConfig({"like": "pairs"})), {"sparse_features": [], "labels": []}
    saved = to_dict(config)
    check_same_run("runs/a", (saved, schema), (saved, schema))
    with pytest.raises(UserError, match=r"runs/a is of another run: loss.kinds was {'like': 'pairs'} and is {}; give"):
        check_same_run("runs/a", (saved, schema), (to_dict(TrainConfig()), schema))
    before = {name: value for name, value in to_dict(TrainConfig()).items() if name != "loss"}
    assert from_dict(TrainConfig, before) == TrainConfig()


def test_a_part_of_the_tasks_keeps_its_own_losses() -> None:
    loss = LossConfig(KINDS, {"like": 2.0}, 3.0, pointwise={"like": 0.2, "finish": 0.3, "*": 0.4})
    of_like = LossConfig({"like": "pairs"}, {"like": 2.0}, 3.0, pointwise={"like": 0.2, "*": 0.4})
    assert of_some_tasks(loss, ("like",)) == of_like


def test_a_star_stands_for_every_task_that_is_not_named() -> None:
    loss = LossConfig({"*": "focal", "like": "bce"}, {"*": 2.0})
    assert losses_of_tasks(loss, ("finish", "like")) == (TaskLoss("focal", 2.0), TaskLoss("bce", 2.0))
    assert losses_of_tasks(of_some_tasks(loss, ("finish",)), ("finish",)) == (TaskLoss("focal", 2.0),)


def test_each_number_of_a_loss_is_that_of_the_task_or_of_all_tasks() -> None:
    loss = LossConfig(KINDS, focal_gamma=1.0, smoothing={"*": 0.1, "like": 0.2}, pointwise={"like": 0.3})
    numbers = [(each.focal_gamma, each.smoothing, each.pointwise) for each in losses_of_tasks(loss, TASKS)]
    assert numbers == [(1.0, 0.1, 0.5), (1.0, 0.2, 0.3)]
    logits, labels, weights, groups = rows_of()
    tasks = losses_of_tasks(LossConfig({"*": "pairs"}, pointwise={"like": 0.3}, rows_within={"like": "uid"}), TASKS)
    of_both = task_losses(tasks, logits, labels, weights=weights, groups={"uid": groups}).tolist()
    for i, within in enumerate([torch.zeros_like(groups), groups]):
        expected = by_equation(tasks[i], logits[:, i], labels[:, i], weights[:, i], within)
        assert of_both[i] == pytest.approx(expected, rel=1e-12)


def test_numbers_of_losses_are_given_once_or_by_task_on_the_command_line_and_in_files() -> None:
    def given(*args: str) -> LossConfig:
        return config_from_command_line([*args]).loss

    of_all = given("--loss.focal-gamma", "3", "--loss.rows-within", "uid")
    assert of_all == LossConfig(focal_gamma=3.0, rows_within="uid")
    by_task = given("--loss.focal-gamma", "*", "2", "like", "1", "--loss.rows-within", "like", "uid")
    assert by_task == LossConfig(focal_gamma={"*": 2.0, "like": 1.0}, rows_within={"like": "uid"})
    for loss in (of_all, by_task):
        written = parse_yaml(dump_config(TrainConfig(loss=loss)))
        assert from_dict(LossConfig, written["loss"]) == loss
    with pytest.raises(UserError, match=r"--loss.focal-gamma is 11.0, but must be from 0 to 10\."):
        given("--loss.focal-gamma", "like", "11")
    with pytest.raises(UserError, match=r"--loss.focal-gamma: a name has no value, or a value is of another type; --h"):
        given("--loss.focal-gamma", "like", "1", "finish")


def test_counted_batches_of_one_process_give_the_losses_of_plain_ones() -> None:
    train = build_model(MODEL, COLUMNS, LossConfig(KINDS), table_device="cpu")
    batch = random_batch(0)
    [counted] = LabelCounter().counted([batch])
    assert torch.equal(train(counted)[1][0], train(batch)[1][0])
