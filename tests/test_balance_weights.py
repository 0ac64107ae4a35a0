"""Weights of tasks that learn: each method equals its equations, written out in plain loops."""

import math

import pytest
import torch
from torch import Tensor

from stem_torchrec.balance.task_weights import dwa, dwa_state, uncertainty, uncertainty_state


def losses_of(step: int) -> Tensor:
    """Losses of three tasks that fall from step to step, some of them 0; the last is up to six times the others."""
    generator = torch.Generator().manual_seed(step)
    losses = torch.rand(3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 1.0, 6.0]) / (1 + step / 5)
    return losses * (torch.rand(3, generator=generator) > 0.2)


def test_uncertainty_weights_descend_the_loss_of_kendall() -> None:
    state, by_hand, rate, slopes = uncertainty_state(3), [0.0] * 3, 0.1, []
    for step in range(12):
        losses = losses_of(step)
        weights = uncertainty(losses, state, rate)
        assert weights.tolist() == pytest.approx([math.exp(-s) for s in by_hand])
        for t, loss in enumerate(losses.tolist()):
            s = torch.tensor(by_hand[t], dtype=torch.float64, requires_grad=True)
            (torch.exp(-s) * loss + s / 2).backward()
            slopes.append(s.grad.item())
            # A task without a label in a step learns nothing in it, and none goes down a steeper slope than -1.
            by_hand[t] -= rate * max(slopes[-1], -1.0) if loss > 0 else 0.0
    assert state["log_variances"].tolist() == pytest.approx(by_hand)
    assert min(slopes) < -1.5


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
