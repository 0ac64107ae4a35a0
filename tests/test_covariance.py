"""The penalty on the covariances of own and shared embeddings: its gradient, its rows, and what it leaves alone."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.models.build import build_model
from stem_torchrec.models.covariance import covariance_penalty
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.loss import MultiTaskTrain
from stem_torchrec.models.table import with_arch

from distributed import run_ranks
from reference import COLUMNS, TABLES, random_batch
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank, with_labels_of

WEIGHT = 3.0
CONFIG = replace(MODEL, num_layers=1, covariance_weight=WEIGHT)


def penalty(own: Tensor, shared: Tensor) -> Tensor:
    """The equation for one task in plain loops, from its rows."""
    n, width = own.shape
    total = torch.zeros(())
    for i in range(width):
        for j in range(width):
            x, s = own[:, i], shared[:, j]
            total = total + ((x - x.sum() / n) * (s - s.sum() / n)).sum().abs() / n
    return WEIGHT / width**2 * total


def test_the_example_of_the_page_of_the_function() -> None:
    x, s = (torch.tensor([[1.0], [3.0]], requires_grad=True) for _ in range(2))
    own, _ = covariance_penalty([x], s, 0.5)
    own.sum().backward()
    assert x.grad is not None
    assert s.grad is not None
    assert (x.grad.tolist(), s.grad.tolist()) == ([[0.75], [1.25]], [[-0.25], [0.25]])


@pytest.mark.parametrize("arch", ["stem", "me_mmoe", "me_ple"])
def test_the_gradient_of_the_penalty_is_added_for_the_rows_that_train_a_task(arch: str) -> None:
    batch = random_batch(1, rows=20)
    known = ~batch.labels.isnan()
    gradients = []
    for weight in (0.0, WEIGHT):
        torch.manual_seed(0)
        train = build_model(with_arch(CONFIG, arch, covariance_weight=weight), COLUMNS, table_device="cpu").train()
        train(batch)[0].backward()
        gradients.append({name: p.grad for name, p in train.named_parameters()})
    model = train.model
    assert isinstance(model, MultiTaskModel)
    pooled = model.sparse_arch(batch.sparse_features)
    # In ME-MMoE every row with a label trains every table.
    rows = [known.any(dim=1) if arch == "me_mmoe" else known[:, t] for t in range(2)]
    expected = sum(penalty(pooled[task][rows[t]], pooled["shared"][rows[t]]) for t, task in enumerate(COLUMNS.labels))
    names, parameters = zip(*train.named_parameters(), strict=True)
    by_formula = torch.autograd.grad(expected, parameters, allow_unused=True)
    for name, added in zip(names, by_formula, strict=True):
        before, after = gradients[0][name], gradients[1][name]
        assert (added is not None) == (TABLES in name)
        # Single-precision sums of some dozen terms in another order.
        torch.testing.assert_close(after, before + (0 if added is None else added), rtol=1e-4, atol=1e-6)
        if added is not None:
            assert added.abs().max() > 1e-3


def test_a_step_without_labels_of_a_task_leaves_its_tables_the_same_bits() -> None:
    torch.manual_seed(0)
    train = build_model(CONFIG, COLUMNS, table_device="cpu").train()
    [batch] = with_labels_of(0, [random_batch(1, rows=20, missing=0.0)])
    train(batch)[0].backward()
    for name, parameter in train.named_parameters():
        if "like/" in name:
            assert parameter.grad is None or parameter.grad.count_nonzero() == 0
        if "shared/" in name:
            assert parameter.grad is not None
            assert parameter.grad.count_nonzero() > 0


def test_a_model_that_predicts_has_no_penalty() -> None:
    torch.manual_seed(0)
    train = build_model(CONFIG, COLUMNS, table_device="cpu").eval()
    before = build_model(replace(CONFIG, covariance_weight=0.0), COLUMNS, table_device="cpu").eval()
    before.load_state_dict(train.state_dict())
    batch, gradients = random_batch(1), []
    for each in (train, before):
        each(batch)[0].backward()
        gradients.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
    assert all(torch.equal(gradients[0][name], gradient) for name, gradient in gradients[1].items())


def tables_after_a_step(weight: float) -> dict[str, Tensor]:
    config = config_of("sgd", "table_wise", model=replace(CONFIG, covariance_weight=weight), learning_rate=1.0)
    run = Run.build(config)
    run.train(of_this_rank(batches_of_ranks(1, dist.get_world_size())))
    return {name: weights for name, weights in run.weights().items() if TABLES in name}


@pytest.mark.long
def test_on_two_ranks_the_penalty_is_the_mean_of_that_of_each_ranks_rows() -> None:
    """So the docstring states it: a covariance of all rows would be another one."""
    with_penalty, without = (run_ranks(2, tables_after_a_step, weight)[0] for weight in (WEIGHT, 0.0))
    [first] = run_ranks(1, weights_at_the_start)
    model = build_model(CONFIG, COLUMNS, table_device="cpu")
    assert isinstance(model, MultiTaskTrain)
    model.model.load_state_dict(first)
    total = torch.zeros(())
    for batch in batches_of_ranks(1, 2)[0]:
        pooled = model.model.sparse_arch(batch.sparse_features)
        for task in COLUMNS.labels:
            assert not math.isnan(batch.labels.sum().item())
            total = total + penalty(pooled[task], pooled["shared"]) / 2
    total.backward()
    for name, parameter in model.model.named_parameters():
        if TABLES in name:
            moved = without[name] - with_penalty[name]
            assert parameter.grad is not None
            torch.testing.assert_close(moved, parameter.grad, rtol=1e-3, atol=1e-5)


def weights_at_the_start() -> dict[str, Tensor]:
    return Run.build(config_of("sgd", "table_wise", model=CONFIG, learning_rate=1.0)).weights()
