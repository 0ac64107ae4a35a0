"""Covariance of own and shared embeddings, as a penalty that keeps a task's tables from repeating the shared ones.

Source: Lin et al., "Crocodile: Cross Experts Covariance for Disentangled Learning in Multi-Domain Recommendation",
arXiv 2405.12706.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stem_torchrec.metrics.collectives import mean_over_ranks


def covariance_penalty(own: Sequence[Tensor], shared: Tensor, weight: float) -> tuple[Tensor, ...]:
    """Returns the tensors, shared last; its backward adds the gradient of the penalty to theirs.

        weight * sum over tasks t: |C_t|_1 / (N_t N),   C_t = 1/n sum over rows (x_t - mean x_t)^T (x_s - mean x_s)

    |C|_1 is the sum of the absolute values of the N_t x N covariances. The n rows are those of all ranks whose gradient
    of x_t is not zero, so that a task without labels in a step trains nothing by it. The paper takes all pairs of
    groups, and the outputs of experts. Here a pair of two tasks is left out: through it a task's rows would train
    another's tables, which STEM never does; and it is the embeddings that the penalty keeps apart. The paper's sum over
    rows is not divided by n, so its weight times n is a weight here, which means the same for batches of any size.

    With a process group all ranks make the backward pass, in which they exchange N_t N + N_t + N + 1 numbers for each
    t. The mean over the ranks of what they add to gradients is the gradient of the penalty.

    Args:
        own: pooled embeddings of each task, or group of tasks with tables of its own, (B, N_t).
        shared: those of the shared tables, (B, N).
        weight: of the penalty.

    Example::

        x, s = (torch.tensor([[1.0], [3.0]], requires_grad=True) for _ in range(2))
        x_, s_ = covariance_penalty([x], s, 0.5)    # C = 1
        x_.sum().backward()
        x.grad, s.grad  # [[0.75], [1.25]], [[-0.25], [0.25]]
    """
    return _CovariancePenalty.apply(weight, *own, shared)


class _CovariancePenalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: float, *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*xs)
        ctx.weight = weight
        return tuple(x.view_as(x) for x in xs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *own, shared = ctx.saved_tensors
        *of_own, of_shared = grads
        added = []
        for x, grad in zip(own, of_own, strict=True):
            rows = (grad.count_nonzero(dim=1).unsqueeze(1) > 0).to(x.dtype)
            # As what a loss is divided by, these are sums over all ranks over the number of ranks.
            sums = mean_over_ranks(torch.cat([rows.sum(dim=0), (rows * x).sum(dim=0), (rows * shared).sum(dim=0)]))
            number, *totals = sums.split([1, x.shape[1], shared.shape[1]])
            number = torch.where(number > 0, number, 1)
            of_task, of_all = ((y - sum_ / number) * rows for y, sum_ in zip((x, shared), totals, strict=True))
            product = mean_over_ranks(of_task.T @ of_all)
            # |C|_1 has the gradient sign(C); the means drop out of it, as the other side's rows sum to zero.
            sign = product.sign() * (ctx.weight / (number * product.numel()))
            added.append(grad + of_all @ sign.T)
            of_shared = of_shared + of_task @ sign
        return (None, *added, of_shared)
