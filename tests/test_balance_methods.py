"""Weights that learn and gradients that are balanced: each method equals its equations, written out in plain loops."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from stem_torchrec.balance.simplex import min_norm
from stem_torchrec.balance.task_gradients import cagrad, gradcraft, mgda, pcgrad
from stem_torchrec.balance.task_weights import dwa, dwa_state, uncertainty, uncertainty_state

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


def test_methods_leave_gradients_without_conflict_as_they_are() -> None:
    g = np.abs(gradients(0))
    gram = g @ g.T
    assert pcgrad(gram, 0) == pytest.approx(np.ones(TASKS))
    assert cagrad(gram, 0.0) == pytest.approx(np.ones(TASKS))
    assert gradcraft(gram, np.linalg.norm(g, axis=1), 0.0, 0.0) == pytest.approx(np.ones(TASKS))


def losses_of(step: int, tasks: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    losses = torch.rand(tasks, generator=generator, dtype=torch.float64) / (1 + step / 5)
    return losses * (torch.rand(tasks, generator=generator) > 0.2)


def test_uncertainty_weights_descend_the_loss_of_kendall() -> None:
    state, by_hand, rate = uncertainty_state(3), [0.0] * 3, 0.1
    for step in range(12):
        losses = losses_of(step)
        weights = uncertainty(losses, state, rate)
        assert weights.tolist() == pytest.approx([math.exp(-s) for s in by_hand])
        for t, loss in enumerate(losses.tolist()):
            s = torch.tensor(by_hand[t], dtype=torch.float64, requires_grad=True)
            (torch.exp(-s) * loss + s / 2).backward()
            # A task without a label in a step learns nothing in it.
            by_hand[t] -= rate * s.grad.item() if loss > 0 else 0.0
    assert state["log_variances"].tolist() == pytest.approx(by_hand)


def test_an_uncertainty_weight_settles_at_one_over_twice_the_loss() -> None:
    state, losses = uncertainty_state(2), torch.tensor([0.1, 2.0], dtype=torch.float64)
    for _ in range(2000):
        weights = uncertainty(losses, state, 0.05)
    assert weights.tolist() == pytest.approx([5.0, 0.25])


def test_dwa_weighs_by_how_slowly_the_mean_losses_of_periods_fall() -> None:
    state, period, tau = dwa_state(3), 4, 2.0
    means: list[list[float]] = []
    for first in range(0, 24, period):
        known = [torch.stack([losses_of(step)[t] for step in range(first, first + period)]) for t in range(3)]
        expected = [1.0] * 3
        if len(means) >= 2:
            ratios = [new / old for new, old in zip(means[-1], means[-2], strict=True)]
            total = sum(math.exp(r / tau) for r in ratios)
            expected = [3 * math.exp(r / tau) / total for r in ratios]
        for step in range(first, first + period):
            assert dwa(losses_of(step), state, tau, period).tolist() == pytest.approx(expected)
        means.append([each[each > 0].mean().item() for each in known])


def test_losses_that_are_not_finite_leave_the_states_as_they_are() -> None:
    broken = torch.tensor([0.5, math.nan, math.inf], dtype=torch.float64)
    state = uncertainty_state(3)
    uncertainty(broken, state, 0.1)
    assert state["log_variances"].tolist() == [0, 0, 0]
    state = dwa_state(3)
    dwa(broken, state, 2.0, 5)
    assert state["sums"].tolist() == [0, 0, 0]
