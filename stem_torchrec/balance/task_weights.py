"""Weights of the tasks' losses that learn. Each returns those of a step, (T,), and moves its state on.

A task whose loss is 0 on all ranks has no label in the step, and leaves its state as it is; so do losses that are not
finite. Numbers are fp64 on the device of the losses, for which the host does not wait.
"""

import torch
from torch import Tensor

State = dict[str, Tensor]


def uncertainty_state(tasks: int) -> State:
    """The logarithm of each task's variance, (T,), from 0, which is the weight 1."""
    return {"log_variances": torch.zeros(tasks, dtype=torch.float64)}


def uncertainty(losses: Tensor, state: State, rate: float) -> Tensor:
    """Uncertainty weights: exp(-s_t), where s_t = log sigma_t^2 descends  exp(-s_t) L_t + s_t / 2.

    Its gradient is 1/2 - exp(-s_t) L_t, cut off at -1, so that a large loss does not make s_t jump; the weights settle
    at 1 / (2 L_t). A task's weight depends on its own losses alone: tasks stay apart to the bit. Source: Kendall, Gal
    and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018, eq. 10, for cross entropies, and
    halves of squared errors. There the model's optimizer trains s_t, here gradient descent of its own.

    Args:
        losses: of a step, over all ranks, (T,).
        state: see `uncertainty_state`.
        rate: of gradient descent.
    """
    weights = torch.exp(-state["log_variances"])
    slopes = (0.5 - weights * losses).clamp(min=-1)
    state["log_variances"].sub_(torch.where(_seen(losses), rate * slopes, 0.0))
    return weights


def dwa_state(tasks: int) -> State:
    """The steps so far, sums and numbers of losses in the period, and the mean losses of the two before; 0 is none."""
    names = ("sums", "counts", "last", "before_last")
    return {"steps": torch.zeros((), dtype=torch.int64)} | {n: torch.zeros(tasks, dtype=torch.float64) for n in names}


def dwa(losses: Tensor, state: State, temperature: float, period: int) -> Tensor:
    """Dynamic weight average: T exp(r_t / tau) / sum over k of exp(r_k / tau),  r_t = L_t(n - 1) / L_t(n - 2).

    L_t(n) is the mean loss in period n; r_t is 1 as long as a task has not had a loss in two periods. The sum of the
    weights is T, so a task's weight depends on the losses of the others. Source: Liu, Johns and Davison, "End-to-End
    Multi-Task Learning with Attention", CVPR 2019, eq. 7, where a period is an epoch.

    Args:
        losses: of a step, over all ranks, (T,).
        state: see `dwa_state`.
        temperature: tau.
        period: steps of a period.
    """
    last, before_last, seen = state["last"], state["before_last"], _seen(losses)
    falls = torch.where(before_last > 0, last / before_last, 1.0)
    weights = len(losses) * torch.softmax(falls / temperature, dim=0)
    state["steps"].add_(1)
    sums = state["sums"] + torch.where(seen, losses, 0.0)
    counts = state["counts"] + seen
    ends = (state["steps"] % period == 0) & (counts > 0)
    before_last.copy_(torch.where(ends, last, before_last))
    last.copy_(torch.where(ends, sums / counts, last))
    state["sums"].copy_(torch.where(ends, 0.0, sums))
    state["counts"].copy_(torch.where(ends, 0.0, counts))
    return weights


def _seen(losses: Tensor) -> Tensor:
    return (losses > 0) & losses.isfinite().all()
