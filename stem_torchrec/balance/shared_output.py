"""Where the shared tables meet the model: the tasks' gradients are read, and replaced by a combination of them.

The optimizers of tables are fused into the backward pass and show no gradients. Their pooled output x_s (B, F * D)
does: the gradient that it gets is all that the shared tables learn from.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class SharedOutput(nn.Module):
    """Returns the pooled output x_s of the shared tables as it is, and keeps it until the loss takes it."""

    def __init__(self) -> None:
        super().__init__()
        self._pooled: Tensor | None = None

    def forward(self, pooled: Tensor) -> Tensor:
        self._pooled = crossing(pooled)
        return self._pooled

    def take(self) -> Tensor:
        """The output of the last forward pass, which is forgotten, as it holds the graph of the step."""
        pooled, self._pooled = self._pooled, None
        assert pooled is not None, "the model's forward pass comes first"
        return pooled


def crossing(pooled: Tensor) -> Tensor:
    """The pooled output, whose gradient `replace_gradient` may replace; what is above it does not notice."""
    return _Crossing.apply(pooled)


# The pipeline traces a model with FX, which cannot look into an autograd function: to FX it is one step.
torch.fx.wrap("crossing")


class _Crossing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pooled: Tensor) -> Tensor:
        ctx.replacement = ctx.scale = None
        return pooled.view_as(pooled)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad if ctx.scale is None else ctx.scale * ctx.replacement


def replace_gradient(pooled: Tensor, total: Tensor, replacement: Tensor) -> None:
    """The backward pass of the loss `total` gives `pooled`, a `crossing`, the gradient `replacement`.

    If what is above scales the loss, as a GradScaler does, the replacement is scaled by as much.
    """
    crossed: Any = pooled.grad_fn
    crossed.replacement = replacement

    def scale(grad: Tensor) -> None:
        crossed.scale = grad

    total.register_hook(scale)


def gradients_of_tasks(losses: Tensor, pooled: Tensor) -> list[Tensor]:
    """The gradient of each of T losses (T,) at the pooled output: T tensors of its shape, zero where none arrives.

    T backward passes through what is above the shared tables, without gradients of weights: DistributedDataParallel
    does not notice them. They keep the graph for the backward pass of the step.
    """
    # A backward pass has the types of its forward pass, and runs outside of autocast.
    with torch.autocast(pooled.device.type, enabled=False):
        return [
            torch.autograd.grad(loss, pooled, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for loss in losses.unbind()
        ]


def dot_products(gradients: Sequence[Tensor]) -> Tensor:
    """The dot products of this rank's parts of T gradients, (T, T), in fp64; the sum over the ranks has all rows."""
    flat = [gradient.flatten() for gradient in gradients]
    products = flat[0].new_zeros(len(flat), len(flat), dtype=torch.float64)
    for i, first in enumerate(flat):
        # One by one: a matrix product would be rounded to tf32 where that is set.
        for j, second in enumerate(flat[: i + 1]):
            products[i, j] = products[j, i] = torch.dot(first, second)
    return products
