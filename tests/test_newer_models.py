"""HoME's categories, PEPNet's features and the losses that ESCM2 adds."""

import math

import pytest
import torch
from torch import Tensor

from stem_torchrec.data.label_counts import LabelCounter
from stem_torchrec.models.build import build_model
from stem_torchrec.models.escm2 import CounterfactualLosses
from stem_torchrec.models.home import category_of_tasks
from stem_torchrec.models.loss import multi_task_loss
from stem_torchrec.models.table import with_arch
from stem_torchrec.models.trained_by import tasks_of_parameters
from stem_torchrec.runtime.errors import UserError

from reference import COLUMNS, random_batch
from runs import MODEL
from test_baselines import COLUMNS as OF_THREE
from test_baselines import CONFIG

# Single-precision sums of some dozen terms in another order differ by 1e-7 to 1e-6 of their largest term.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


def counterfactual(towers: Tensor, labels: Tensor, weight: float, least: float) -> list[Tensor]:
    """The equation in plain loops, from the outputs of the towers and not from the products."""
    steps = 1 / (1 + (-towers.double()).exp())
    losses = [torch.zeros(())]
    for t in range(1, labels.shape[1]):
        total, rows = torch.zeros(()), 0
        for row, y in zip(steps, labels, strict=True):
            if y[t].isnan():
                continue
            rows += 1
            if y[t - 1] == 1:
                propensity = max(math.prod(row[:t].tolist()), least)
                total = total - (y[t] * row[t].log() + (1 - y[t]) * (1 - row[t]).log()) / propensity
        losses.append(weight * total / max(rows, 1))
    return losses


@pytest.mark.parametrize("tasks", [2, 3])
def test_the_losses_that_escm2_adds_are_those_of_its_equation_to_the_gradients(tasks: int) -> None:
    torch.manual_seed(0)
    towers, labels = torch.randn(30, tasks, requires_grad=True), torch.randint(2, (30, tasks)).float()
    labels[torch.rand(labels.shape) < 0.2] = math.nan
    log_p = torch.nn.functional.logsigmoid(towers).cumsum(dim=1)
    logits = log_p - torch.log(-torch.expm1(log_p))
    losses = CounterfactualLosses(0.3, 0.25)(logits, labels, None, None)
    expected = torch.stack([each.double() for each in counterfactual(towers, labels, 0.3, 0.25)])
    torch.testing.assert_close(losses.double(), expected, **ROUNDING)
    assert (losses[1:] > 0).all()
    factors = torch.rand(tasks)
    ours, by_formula = (
        torch.autograd.grad((each * factors.to(each.dtype)).sum(), towers)[0] for each in (losses, expected)
    )
    torch.testing.assert_close(ours, by_formula, rtol=1e-4, atol=1e-6)


def test_escm2_adds_them_to_the_losses_of_its_tasks_as_counted_over_all_ranks() -> None:
    train = build_model(with_arch(MODEL, "escm2", counterfactual_weight=2.0), COLUMNS, table_device="cpu")
    batch = random_batch(1, rows=30)
    total, (losses, logits) = train(batch)
    added = CounterfactualLosses(2.0, 0.05)(logits, batch.labels, None, None)
    torch.testing.assert_close(losses, multi_task_loss(logits, batch.labels) + added, **ROUNDING)
    torch.testing.assert_close(total, losses.sum(), **ROUNDING)
    assert added[1] > 0.1
    [counted] = LabelCounter().counted([batch])
    torch.testing.assert_close(train(counted)[1][0], losses, **ROUNDING)


def test_a_weight_of_a_label_counts_in_the_losses_that_escm2_adds() -> None:
    logits, labels = torch.tensor([[1.0, 0.0], [1.0, -1.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    losses = CounterfactualLosses(1.0, 0.05)
    weighted = losses(logits, labels, None, torch.tensor([[1.0, 3.0], [1.0, 0.0]]))
    torch.testing.assert_close(weighted, losses(logits[:1], labels[:1], None, None))


def test_in_home_a_category_is_not_trained_by_the_tasks_of_another() -> None:
    config = with_arch(CONFIG, "home", categories=("click+share", "like"))
    trained = tasks_of_parameters(build_model(config, OF_THREE), tasks=3, dense_in_features=2)
    owners = {"+click+share": {0, 2}, "+like": {1}, "click": {0}, "like": {1}, "share": {2}, "shared": {0, 1, 2}}
    for name, tasks in trained.items():
        words = name.split(".")
        if any(part in words for part in ("experts", "gates", "self_gates")):
            [owner] = [owners[word] for word in words if word in owners]
            assert tasks == owner, name


@pytest.mark.parametrize("categories", [("click+like",), ("click+like", "like+share"), ("click+like", "share+buy")])
def test_categories_must_name_each_task_once(categories: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"^--model.categories is click\+like.*must name each of click, like, share on"):
        category_of_tasks(("click", "like", "share"), categories)


def test_a_feature_of_pepnet_that_has_no_table_is_refused() -> None:
    with pytest.raises(UserError, match=r"^--model.prior names the feature 'uud', .* of uid, tags only; did you mean"):
        build_model(with_arch(MODEL, "pepnet", prior=("uud",)), COLUMNS)
