"""All forward, task-specific backward (AFTB): a task reads the experts of all tasks, its loss trains only some of them.

`aftb_reference` is the paper's idea as one reads it; `aftb` computes the same in one batched matrix product each way.

Source: "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation", AAAI 2024, arXiv 2308.13537, eq. 6.
"""

from typing import Any

import torch
from torch import Tensor


def aftb_reference(weights: Tensor, experts: Tensor, trained: Tensor) -> Tensor:
    """What `aftb` computes, as the paper writes it."""
    mixtures = []
    for weight, trains in zip(weights.unbind(dim=1), trained.tolist(), strict=True):
        # All forward, task-specific backward: other tasks' experts are read, never trained.
        seen = [e if own_or_shared else e.detach() for e, own_or_shared in zip(experts, trains, strict=True)]
        mixtures.append(sum((weight[:, k, None] * e for k, e in enumerate(seen)), start=torch.zeros(())))
    return torch.stack(mixtures, dim=1)


def aftb(weights: Tensor, experts: Tensor, trained: Tensor) -> Tensor:
    """Mixtures of experts, one for each stream: `(B, S, K), (K, B, H), (S, K) -> (B, S, H)`.

    Forward and backward are one batched matrix product over the rows each, for all streams together:

        Y = W E        dW = dY E^T        dE = (W * trained)^T dY

    A weight of exactly 0 reads nothing, not even from an expert that has overflowed: 0 * inf counts as 0.

    Args:
        weights: how much of K experts each of S streams reads, by row of the batch.
        experts: outputs of the experts.
        trained: whether a stream's gradient reaches an expert, as booleans; it always reaches the weights.

    Example::

        weights = torch.tensor([[[0.5, 0.5]]])                                # one row, one stream, two experts
        experts = torch.tensor([[[2.0]], [[4.0]]], requires_grad=True)
        aftb(weights, experts, torch.tensor([[True, False]])).sum().backward()  # the mixture is 3
        experts.grad                                                          # [[[0.5]], [[0.0]]]
    """
    return _AFTB.apply(weights.to(experts.dtype), experts.transpose(0, 1), trained)


class _AFTB(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, experts: Tensor, trained: Tensor) -> Tensor:
        closed = weights == 0
        # On CUDA a look at the weights would wait for the device, and an exported program has no branches, so there the
        # experts are always masked.
        masked = closed.is_cuda or torch.compiler.is_exporting() or bool(closed.any())
        if masked:
            overflowed = ~torch.linalg.vector_norm(experts, torch.inf, dim=2).isfinite()
            experts = experts.masked_fill(overflowed.unsqueeze(2), 0)
        ctx.save_for_backward(weights, experts, trained)
        # PLE has a product like this for every task, and bmm takes several times as long for it, in bf16 above all.
        ctx.one_by_one = weights.shape[1:] == (1, 1)
        mixed = weights * experts if ctx.one_by_one else torch.bmm(weights, experts)
        if masked:
            reached = (overflowed.unsqueeze(1) & ~closed).any(dim=2)
            mixed = mixed.masked_fill(reached.unsqueeze(2), torch.nan)
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weights, experts, trained = ctx.saved_tensors
        of_weights = of_experts = None
        # Of frozen gates and experts nothing is needed.
        if ctx.needs_input_grad[0]:
            of_weights = (grad * experts).sum(dim=2, keepdim=True) if ctx.one_by_one else torch.bmm(grad, experts.mT)
        if ctx.needs_input_grad[1]:
            read = weights * trained
            of_experts = read * grad if ctx.one_by_one else torch.bmm(read.mT, grad)
        return of_weights, of_experts, None
