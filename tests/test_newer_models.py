"""HoME's categories, PEPNet's features and the losses that ESCM2 and DCMT add."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.data.label_counts import LabelCounter
from stem_torchrec.models.build import build_model
from stem_torchrec.models.counterfactual import CounterfactualLosses, Twin, doubly_robust, inverse_propensity
from stem_torchrec.models.entire_space import EntireSpace
from stem_torchrec.models.home import category_of_tasks
from stem_torchrec.models.loss import multi_task_loss
from stem_torchrec.models.table import with_arch
from stem_torchrec.models.trained_by import tasks_of_parameters
from stem_torchrec.runtime.errors import UserError

from distributed import run_ranks
from reference import COLUMNS, random_batch
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank
from test_baselines import COLUMNS as OF_THREE
from test_baselines import CONFIG

# Single-precision sums of some dozen terms in another order differ by 1e-7 to 1e-6 of their largest term.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


TERMS = {"ips": inverse_propensity, "dr": doubly_robust, "twin": Twin(0.7)}
WEIGHT, LEAST, AGREEMENT = 0.3, 0.25, 0.7


def added_losses(outputs: Tensor, labels: Tensor, kind: str) -> list[Tensor]:
    """The equations in plain loops, from what the towers put out and not from the products."""
    tasks = labels.shape[1]
    steps, further = 1 / (1 + (-outputs[:, :tasks]).exp()), outputs[:, tasks:]
    losses = [torch.zeros((), dtype=torch.float64)]
    for t in range(1, tasks):
        terms, of_happened, of_failed = [], [], []
        for row, extra, y in zip(steps, further, labels, strict=True):
            if y[t].isnan():
                continue
            p = math.prod(row[:t].tolist())
            error = -(y[t] * row[t].log() + (1 - y[t]) * (1 - row[t]).log())
            happened = float(y[t - 1] == 1)
            if kind == "ips":
                terms.append(happened * error / max(p, LEAST))
            elif kind == "dr":
                imputed = (1 + extra[t - 1].exp()).log()
                terms.append(imputed + happened * (error - imputed + (error - imputed) ** 2) / max(p, LEAST))
            else:
                other = 1 / (1 + (-extra[t - 1]).exp())
                terms.append(AGREEMENT * (1 - (row[t] + other)).abs())
                if y[t - 1] == 1:
                    of_happened.append((1 / max(p, LEAST), error))
                if y[t - 1] == 0:
                    of_failed.append((1 / max(1 - p, LEAST), -other.log()))
        total = sum(terms) / len(terms)
        for side in filter(None, (of_happened, of_failed)):
            total = total + sum(w * e for w, e in side) / sum(w for w, _ in side)
        losses.append(WEIGHT * total)
    return losses


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("tasks", [2, 3])
def test_the_losses_that_are_added_are_those_of_the_equations_to_the_gradients(tasks: int, kind: str) -> None:
    torch.manual_seed(0)
    # Wide enough that probabilities are on both sides of the limit, and of 1 less the limit.
    towers = (1.5 * torch.randn(30, 2 * tasks - 1)).requires_grad_()
    labels = torch.randint(2, (30, tasks)).float()
    labels[torch.rand(labels.shape) < 0.2] = math.nan
    log_p = torch.nn.functional.logsigmoid(towers[:, :tasks]).cumsum(dim=1)
    outputs = torch.cat([log_p - torch.log(-torch.expm1(log_p)), towers[:, tasks:]], dim=1)
    if kind == "ips":
        outputs = outputs[:, :tasks]
    losses = CounterfactualLosses(tasks, WEIGHT, LEAST, TERMS[kind])(outputs, labels, None, None)
    expected = torch.stack(added_losses(towers.double(), labels, kind))
    torch.testing.assert_close(losses.double(), expected, **ROUNDING)
    assert (losses[1:] > 0).all()
    factors = torch.rand(tasks)
    ours, by_formula = (
        torch.autograd.grad((each * factors.to(each.dtype)).sum(), towers)[0] for each in (losses, expected)
    )
    torch.testing.assert_close(ours, by_formula, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("arch", "options"), [("escm2", {}), ("escm2", {"estimator": "dr"}), ("dcmt", {})])
def test_they_are_added_to_the_losses_of_the_tasks_as_counted_over_all_ranks(arch: str, options: dict) -> None:
    train = build_model(with_arch(MODEL, arch, counterfactual_weight=2.0, **options), COLUMNS, table_device="cpu")
    batch = random_batch(1, rows=30)
    total, (losses, logits) = train(batch)
    assert logits.shape == (30, 2)
    assert isinstance(train.model, EntireSpace)
    outputs = train.model(batch.dense_features, batch.sparse_features)
    added = train.model.added_losses(outputs, batch.labels, None, None)
    torch.testing.assert_close(losses, (multi_task_loss(logits, batch.labels) + added).detach(), **ROUNDING)
    torch.testing.assert_close(total, losses.sum(), **ROUNDING)
    assert added[0] == 0
    assert added[1] > 0.1
    total.backward()
    assert all(p.grad is not None and p.grad.count_nonzero() for p in train.parameters())
    [counted] = LabelCounter().counted([batch])
    torch.testing.assert_close(train(counted)[1][0], losses, **ROUNDING)


def test_a_weight_of_a_label_counts_in_the_losses_that_are_added() -> None:
    logits, labels = torch.tensor([[1.0, 0.0], [1.0, -1.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    losses = CounterfactualLosses(2, 1.0, 0.05, inverse_propensity)
    weighted = losses(logits, labels, None, torch.tensor([[1.0, 3.0], [1.0, 0.0]]))
    torch.testing.assert_close(weighted, losses(logits[:1], labels[:1], None, None))


def test_a_likely_row_weighs_as_much_as_it_stands_for_and_no_row_more_than_the_limit() -> None:
    errors = []
    for p in (0.9975, 0.5, 0.01):
        outputs = torch.tensor([[p, p / 2]]).logit()
        losses = CounterfactualLosses(2, 1.0, 0.1, inverse_propensity)(outputs, torch.ones(1, 2), None, None)
        errors.append(losses[1].item() / math.log(2))
    assert errors == pytest.approx([1 / 0.9975, 2.0, 10.0], rel=1e-4)


def dcmt_of_rows(sizes: list[int]) -> tuple[Tensor, Tensor]:
    """The losses of this rank's rows, where the ranks have `sizes` of them, and their gradients."""
    generator = torch.Generator().manual_seed(0)
    outputs, weights = torch.randn(24, 5, generator=generator), torch.rand(24, 3, generator=generator)
    labels = torch.randint(2, (24, 3), generator=generator).float()
    labels[torch.rand(24, 3, generator=generator) < 0.2] = math.nan
    of_all = (weights * ~labels.isnan()).sum(dim=0)
    z, y, w = (each.split(sizes)[dist.get_rank()] for each in (outputs, labels, weights))
    z = z.clone().requires_grad_()
    losses = CounterfactualLosses(3, WEIGHT, LEAST, Twin(AGREEMENT))(z, y, of_all / len(sizes), w)
    return losses.detach(), torch.autograd.grad(losses.sum(), z)[0]


def test_ranks_divide_by_the_weights_of_the_rows_of_all() -> None:
    [(losses, gradients)] = run_ranks(1, dcmt_of_rows, [24])
    for sizes in ([20, 4], [0, 24]):
        of_ranks, parts = zip(*run_ranks(2, dcmt_of_rows, sizes), strict=True)
        # Sums in another order, in single precision; data parallelism takes the mean over the ranks.
        torch.testing.assert_close(sum(of_ranks) / 2, losses, **ROUNDING)
        torch.testing.assert_close(torch.cat(parts) / 2, gradients, **ROUNDING)


def dcmt_after_two_steps() -> dict[str, Tensor]:
    model = with_arch(MODEL, "dcmt", counterfactual_weight=2.0, agreement=0.7)
    run = Run.build(config_of("sgd", "table_wise", model=model, learning_rate=1.0))
    run.train(of_this_rank(batches_of_ranks(2, dist.get_world_size(), missing=0.3)))
    return run.weights()


@pytest.mark.long
def test_two_ranks_train_dcmt_as_one_process_does() -> None:
    [one], two = run_ranks(1, dcmt_after_two_steps), run_ranks(2, dcmt_after_two_steps)
    for name, value in one.items():
        # Sums over the rows in another order, in single precision, over two steps.
        torch.testing.assert_close(two[0][name], value, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


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
    with pytest.raises(UserError, match=r"^--model.prior names the feature 'age', but the model has tables of uid"):
        build_model(replace(MODEL, prior=("age",)), COLUMNS)
