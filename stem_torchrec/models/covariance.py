"""Covariance of own and shared embeddings, as a penalty that keeps a task's tables from repeating the shared ones.

Source: Lin et al., "Crocodile: Cross Experts Covariance for Disentangled Learning in Multi-Domain Recommendation",
arXiv 2405.12706.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def covariance_penalty(own: Sequence[Tensor], shared: Tensor, weight: float) -> tuple[Tensor, ...]:
    """Returns the tensors, shared last; its backward adds the gradient of the penalty to theirs.

        weight / N^2 * sum over tasks t: |C_t|_1,   C_t = 1/n sum over rows (x_t - mean x_t)^T (x_s - mean x_s)

    |C|_1 is the sum of the absolute values of the N x N covariances. The n rows are those whose gradient of x_t is not
    zero, so that a task without labels in a step trains nothing by it. The paper takes all pairs of groups, and the
    outputs of experts. Here a pair of two tasks is left out: through it a task's rows would train another's tables,
    which STEM never does; and it is the embeddings that the penalty keeps apart.

    With several ranks C_t is that of each rank's rows, and the gradient the mean over the ranks, as for any loss: the
    covariances of fewer rows each are a little larger than that of all.

    Args:
        own: pooled embeddings (B, N) of each task.
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
            number = rows.sum().clamp(min=1)
            of_task, of_all = ((y - (rows * y).sum(dim=0) / number) * rows for y in (x, shared))
            # |C|_1 has the gradient sign(C); the means drop out of it, as the other side's rows sum to zero.
            sign = (of_task.T @ of_all).sign() * (ctx.weight / (number * x.shape[1] ** 2))
            added.append(grad + of_all @ sign.T)
            of_shared = of_shared + of_task @ sign
        return (None, *added, of_shared)
