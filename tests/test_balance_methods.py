"""Gradients that are balanced: each method equals its equations, written out in plain loops, also at their edges."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize

from stem_torchrec.balance.balance import Balance, balance_values
from stem_torchrec.balance.shared_output import SharedOutput
from stem_torchrec.balance.simplex import min_norm
from stem_torchrec.balance.task_gradients import cagrad, gradcraft, mgda, pcgrad
from stem_torchrec.config import BalanceConfig

TASKS = 4


def gradients(seed: int, *, tasks: int = TASKS, size: int = 9) -> np.ndarray:
    """Gradients (T, N) of different lengths, a few of them in conflict."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=(tasks, size)) * 10.0 ** generator.uniform(-3, 0, size=(tasks, 1))


def least(value: Callable[[np.ndarray], float], tasks: int) -> float:
    """The least value over weights from 0 to 1 of sum 1, by scipy from each corner and the middle."""
    starts = [*np.eye(tasks), np.full(tasks, 1 / tasks)]
    on_simplex = LinearConstraint(np.ones(tasks), 1, 1)
    return min(minimize(value, start, bounds=[(0, 1)] * tasks, constraints=on_simplex).fun for start in starts)


def pcgrad_by_loops(g: np.ndarray, step: int) -> np.ndarray:
    orders = np.random.default_rng(step)
    total = np.zeros(g.shape[1])
    for i in range(len(g)):
        v = g[i].copy()
        for j in orders.permutation(len(g)):
            if j != i and v @ g[j] < 0:
                v = v - (v @ g[j]) / (g[j] @ g[j]) * g[j]
        total += v
    return total


def gradcraft_by_loops(g: np.ndarray, norms: np.ndarray, tau: float, eps: float) -> np.ndarray:
    h = [tau * max(norms) / m * v + (1 - tau) * v for v, m in zip(g, norms, strict=True)]
    total = np.zeros(g.shape[1])
    for i in range(len(h)):
        conflicts = [h[j] for j in range(len(h)) if h[i] @ h[j] < 0]
        v = h[i].copy()
        if conflicts:
            left = [[a @ b for b in conflicts] for a in conflicts]
            right = [eps * np.linalg.norm(h[i]) * np.linalg.norm(a) - a @ h[i] for a in conflicts]
            for w, a in zip(np.linalg.solve(left, right), conflicts, strict=True):
                v = v + w * a
            # What it asks for: after it, no conflict is left but by the margin.
            assert [v @ a for a in conflicts] == pytest.approx(
                [eps * np.linalg.norm(h[i]) * np.linalg.norm(a) for a in conflicts], rel=1e-6, abs=1e-12
            )
        total += v
    return total


@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_projects_conflicts_away_one_by_one_in_the_order_of_the_step(seed: int) -> None:
    g = gradients(seed)
    # Rounding in double precision, where projections cancel.
    assert pcgrad(g @ g.T, seed) @ g == pytest.approx(pcgrad_by_loops(g, seed), rel=1e-9, abs=1e-12)


def test_pcgrad_draws_another_order_in_another_step() -> None:
    # Three gradients in the plane, each in conflict with both others.
    g = np.array([[1.0, 0.2], [-0.6, 1.0], [-0.4, -1.5]])
    assert len({tuple(pcgrad(g @ g.T, step).round(9)) for step in range(20)}) > 1


@pytest.mark.parametrize("seed", range(5))
def test_gradcraft_moves_lengths_and_leaves_all_conflicts_at_once(seed: int) -> None:
    g = gradients(seed)
    norms = np.linalg.norm(g, axis=1) * np.linspace(0.9, 1.1, TASKS)
    combined = gradcraft(g @ g.T, norms, 0.7, 1e-2) @ g
    assert combined == pytest.approx(gradcraft_by_loops(g, norms, 0.7, 1e-2), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_mgda_finds_the_combination_of_least_norm(seed: int) -> None:
    g = gradients(seed) / np.linalg.norm(gradients(seed), axis=1, keepdims=True) + 0.1 * seed
    weights = min_norm(g @ g.T)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    # scipy stops at 1e-6 of the value.
    assert ((weights @ g) ** 2).sum() <= least(lambda w: ((w @ g) ** 2).sum(), TASKS) + 1e-6
    # Along the combination no loss rises: the condition of Karush, Kuhn and Tucker.
    products = g @ (weights @ g)
    assert products.min() >= (weights @ g) @ (weights @ g) - 1e-9
    assert mgda(g @ g.T) == pytest.approx(TASKS * weights)


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [((1.0, 0.0), (0.0, 2.0), 0.8), ((1.0, 0.0), (3.0, 0.1), 1.0), ((-1.0, 0.0), (1.0, 0.0), 0.5)],
)
def test_two_tasks_have_the_closed_form_of_mgda(
    first: tuple[float, float], second: tuple[float, float], share: float
) -> None:
    g, h = np.array(first), np.array(second)
    closed = min(max((h - g) @ h / ((g - h) @ (g - h)), 0), 1)
    pair = np.stack([g, h])
    assert closed == pytest.approx(share)
    assert min_norm(pair @ pair.T) == pytest.approx([closed, 1 - closed])


@pytest.mark.parametrize("seed", range(5))
def test_cagrad_finds_the_direction_that_serves_the_worst_task_best(seed: int) -> None:
    g, c = gradients(seed), 0.5
    mean = g.mean(axis=0)
    radius = c * np.linalg.norm(mean)
    direction = cagrad(g @ g.T, c) @ g / TASKS
    assert np.linalg.norm(direction - mean) <= radius * (1 + 1e-9)
    worst = (g @ direction).min()
    # The least value of the dual problem is what no direction can surpass; scipy stops at 1e-6 of it.
    dual = least(lambda w: (w @ g) @ mean + radius * np.linalg.norm(w @ g), TASKS)
    assert worst == pytest.approx(dual, rel=1e-4, abs=1e-6)
    assert worst >= (g @ mean).min()


COMBINED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "pcgrad": lambda gram: pcgrad(gram, 0),
    "cagrad": lambda gram: cagrad(gram, 0.4),
    "gradcraft": lambda gram: gradcraft(gram, np.sqrt(gram.diagonal()), 0.5, 1e-8),
    "mgda": mgda,
}
"""How much of each gradient is in a method's combination, from the dot products."""


@pytest.mark.parametrize("method", COMBINED)
@pytest.mark.parametrize("tasks", [2, 3, 6])
def test_gradients_that_are_equal_keep_their_sum_or_grow_with_caution(method: str, tasks: int) -> None:
    # Of equal gradients every combination of sum 1 is the mean; CAGrad goes on in its direction.
    longer = 1.4 if method == "cagrad" else 1.0
    for seed in range(60):
        g = np.repeat(gradients(seed, tasks=1), tasks, axis=0)
        assert COMBINED[method](g @ g.T) @ g == pytest.approx(longer * g.sum(axis=0), rel=1e-9), seed


@pytest.mark.parametrize("method", COMBINED)
def test_gradients_that_are_nearly_equal_are_combined_as_equal_ones_are(method: str) -> None:
    for seed in range(40):
        generator = np.random.default_rng(seed)
        first, second = generator.normal(size=(2, 9))
        equal = np.stack([first, first, first, second - 1.2 * first])
        nearly = equal * (1 + 1e-5 * generator.normal(size=equal.shape))
        # As rounded as dot products of single precision are.
        rounding = 1 + 6e-8 * generator.uniform(-1, 1, size=(4, 4))
        combined = COMBINED[method](nearly @ nearly.T * (rounding + rounding.T) / 2) @ nearly
        expected = COMBINED[method](equal @ equal.T) @ equal
        # Some times the difference between the gradients.
        assert np.abs(combined - expected).max() < 1e-3 * np.linalg.norm(equal, axis=1).max(), seed


@pytest.mark.parametrize("method", COMBINED)
def test_lengths_far_apart_leave_every_combination_finite(method: str) -> None:
    for seed in range(20):
        g = gradients(seed) * 10.0 ** np.array([[0], [-11], [11], [-5]])
        combined = COMBINED[method](g @ g.T) @ g
        assert np.isfinite(combined).all()
        # GradCraft makes lengths alike, so it may come to half of T times the longest for each.
        assert np.linalg.norm(combined) < 4 * TASKS * np.linalg.norm(g, axis=1).max()


def test_the_combination_of_least_norm_is_exact_but_for_rounding_at_any_lengths() -> None:
    for seed in range(40):
        g = gradients(seed) * 10.0 ** np.array([[0], [-11], [0], [-5]])
        least_one = min_norm(g @ g.T) @ g
        slack = least_one @ least_one - g @ least_one
        # Karush, Kuhn and Tucker, by rounding in double precision.
        assert (slack <= 1e-13 * np.linalg.norm(g, axis=1) * np.linalg.norm(least_one)).all()


def test_gradients_that_cancel_are_left_as_they_are_by_cagrad_and_none_is_not_a_number() -> None:
    g = np.array([[1.0, 0.0], [-0.5, 1.0], [-0.5, -1.0]])
    assert cagrad(g @ g.T, 0.4).tolist() == [1, 1, 1]
    assert all(np.isfinite(combined(g @ g.T)).all() for combined in COMBINED.values())


@pytest.mark.parametrize("options", [{"gradients": method} for method in COMBINED] + [{"weights": "pareto"}])
def test_a_task_that_alone_has_a_gradient_keeps_its_bits(options: dict) -> None:
    shared = SharedOutput()
    balance = Balance(BalanceConfig(**options), TASKS, shared)
    pooled = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = shared(pooled).sin().sum()
    [gradient] = torch.autograd.grad(balance(torch.stack([0 * loss, loss, 0 * loss, 0 * loss])), pooled)
    assert torch.equal(gradient, pooled.cos())
    assert set(balance_values(balance, "abcd").values()) == {1.0}


def test_methods_leave_gradients_without_conflict_as_they_are() -> None:
    g = np.abs(gradients(0))
    gram = g @ g.T
    assert pcgrad(gram, 0) == pytest.approx(np.ones(TASKS))
    assert cagrad(gram, 0.0) == pytest.approx(np.ones(TASKS))
    assert gradcraft(gram, np.linalg.norm(g, axis=1), 0.0, 0.0) == pytest.approx(np.ones(TASKS))
