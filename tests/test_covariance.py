"""The penalty on the covariances of own and shared embeddings: its gradient, its rows, and what it leaves alone."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.models.build import build_model
from stem_torchrec.models.covariance import covariance_penalty
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.table import with_arch

from distributed import run_ranks
from reference import COLUMNS, TABLES, random_batch
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank, with_labels_of

WEIGHT = 3.0
CONFIG = replace(MODEL, num_layers=1, covariance_weight=WEIGHT)


def penalty(own: Tensor, shared: Tensor) -> Tensor:
    """The equation for one task in plain loops, from its rows."""
    total, entries = torch.zeros(()), 0
    for x in own.unbind(1):
        for s in shared.unbind(1):
            covariance = ((x - x.sum() / len(x)) * (s - s.sum() / len(s))).sum() / len(x)
            total, entries = total + covariance.abs(), entries + 1
    return WEIGHT / entries * total


def test_the_example_of_the_page_of_the_function() -> None:
    x, s = (torch.tensor([[1.0], [3.0]], requires_grad=True) for _ in range(2))
    own, _ = covariance_penalty([x], s, 0.5)
    own.sum().backward()
    assert x.grad is not None
    assert s.grad is not None
    assert (x.grad.tolist(), s.grad.tolist()) == ([[0.75], [1.25]], [[-0.25], [0.25]])


@pytest.mark.parametrize(
    ("arch", "tables"),
    [
        ("stem", {}),
        ("me_mmoe", {}),
        ("me_ple", {}),
        ("stem", {"own_tables": ("uid",)}),
        ("stem", {"table_widths": {"finish": 4, "shared/uid": 12}}),
    ],
)
def test_the_gradient_of_the_penalty_is_added_for_the_rows_that_train_a_task(arch: str, tables: dict) -> None:
    batch = random_batch(1, rows=20)
    known = ~batch.labels.isnan()
    gradients = []
    for weight in (0.0, WEIGHT):
        torch.manual_seed(0)
        train = build_model(
            with_arch(CONFIG, arch, covariance_weight=weight, **tables), COLUMNS, table_device="cpu"
        ).train()
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


def embeddings() -> tuple[Tensor, Tensor, Tensor]:
    """Own and shared embeddings of 12 rows, and which rows have a label."""
    generator = torch.Generator().manual_seed(0)
    own, shared = (torch.randn(12, width, generator=generator) for width in (2, 3))
    return own, shared, torch.arange(12) % 3 > 0


def gradients_of_rows(sizes: list[int]) -> tuple[Tensor, Tensor]:
    """What the penalty adds to the gradients of this rank's rows, where the ranks have `sizes` of them."""
    own, shared, labeled = (each.split(sizes)[dist.get_rank()] for each in embeddings())
    own, shared = (each.clone().requires_grad_() for each in (own, shared))
    loss = (covariance_penalty([own], shared, WEIGHT)[0] * labeled[:, None]).sum()
    of_own, of_shared = torch.autograd.grad(loss, (own, shared))
    return of_own - labeled[:, None].float(), of_shared


def test_ranks_add_the_gradient_of_the_covariances_of_the_rows_of_all() -> None:
    own, shared, labeled = embeddings()
    own, shared = own.requires_grad_(), shared.requires_grad_()
    expected = torch.autograd.grad(penalty(own[labeled], shared[labeled]), (own, shared))
    for sizes in ([11, 1], [0, 5, 7]):
        of_ranks = zip(*run_ranks(len(sizes), gradients_of_rows, sizes), strict=True)
        for parts, by_formula in zip(of_ranks, expected, strict=True):
            # Data parallelism takes the mean over the ranks. Sums of a dozen terms in single precision.
            torch.testing.assert_close(torch.cat(parts) / len(sizes), by_formula, rtol=1e-4, atol=1e-6)


def tables_after_a_step() -> dict[str, Tensor]:
    run = Run.build(config_of("sgd", "table_wise", model=CONFIG, learning_rate=1.0))
    run.train(of_this_rank(batches_of_ranks(1, dist.get_world_size(), missing=0.3)))
    return {name: weights for name, weights in run.weights().items() if TABLES in name}


@pytest.mark.long
def test_two_ranks_train_tables_as_one_does() -> None:
    [one], two = run_ranks(1, tables_after_a_step), run_ranks(2, tables_after_a_step)
    for name, weights in one.items():
        torch.testing.assert_close(two[0][name], weights, rtol=1e-3, atol=1e-5)
