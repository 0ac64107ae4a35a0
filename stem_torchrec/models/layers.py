"""The dense building blocks: MLP and experts, and the penalty on embeddings."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout as drop
from torch.nn.functional import layer_norm, silu

# The pipeline traces a model with FX, which cannot follow a decision about devices: to FX it is one step.
torch.fx.wrap("to_autocast")


class MLP(nn.Sequential):
    """Linear layers with ReLU between them: `(B, in_features) -> (B, out_features)`.

    Weights start Xavier normal, biases at zero. Their names do not depend on the dropout: `0`, `2`, `4`, ...

    Args:
        in_features: width of the input.
        hidden: widths of the hidden layers, each followed by ReLU and dropout.
        out_features: width of a last layer without ReLU; without it the last hidden layer is the output.
        dropout: share of hidden units dropped in training.

    Example::

        MLP(24, [128, 64], out_features=1)(torch.randn(5, 24)).shape  # (5, 1)
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        *,
        out_features: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [linear(in_features, width), relu(dropout)]
            in_features = width
        if out_features is not None:
            layers.append(linear(in_features, out_features))
        super().__init__(*layers)


def linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer with Xavier normal weights and zero bias."""
    layer = nn.Linear(in_features, out_features)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def relu(dropout: float) -> nn.Module:
    """ReLU with dropout behind it, as one layer; without dropout no random number is drawn."""
    return nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(dropout)) if dropout > 0 else nn.ReLU(inplace=True)


class Experts(nn.Sequential):
    """K expert MLPs that read the same input: `(B, in_features) -> (K, B, H)`, H the last hidden width.

    Each layer is one batched matrix product over the experts, followed by ReLU, or by NormedSwish. Weights start as
    those of an MLP.

    Args:
        num_experts: K.
        in_features: width of the input.
        hidden: layer widths of an expert.
        dropout: share of hidden units dropped in training.
        norm: NormedSwish in place of ReLU.

    Example::

        Experts(8, 24, [128, 64])(torch.randn(5, 24)).shape  # (8, 5, 64)
    """

    def __init__(
        self, num_experts: int, in_features: int, hidden: Sequence[int], *, dropout: float = 0.0, norm: bool = False
    ) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            activation = NormedSwish(num_experts, width, dropout) if norm else relu(dropout)
            layers += [BatchedLinear(num_experts, in_features, width), activation]
            in_features = width
        super().__init__(*layers)
        self.num_experts = num_experts

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(to_autocast(x).expand(self.num_experts, -1, -1))


def to_autocast(x: Tensor) -> Tensor:
    """`x` in the type of matrix products; autocast itself would convert each copy of an expanded tensor."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class BatchedLinear(nn.Module):
    """K linear layers side by side: `(K, B, in_features) -> (K, B, out_features)`.

    Weights (K, in_features, out_features) start Xavier normal for each of the K, biases (K, out_features) at zero.
    """

    def __init__(self, num_layers: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_layers, in_features, out_features))
        self.bias = nn.Parameter(torch.zeros(num_layers, out_features))
        for weight in self.weight.detach():
            nn.init.xavier_normal_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight)


class NormedSwish(nn.Module):
    """LayerNorm, then Swish, for each of K experts, so that their outputs have one scale: `(K, B, H) -> (K, B, H)`.

        swish(g_k * (h - mean(h)) / std(h) + b_k),   swish(z) = z sigmoid(z)

    HoME (Wang et al., arXiv 2408.05430) normalizes an expert's output over the rows of a batch. This normalizes each
    row over its H units, so that a row's output depends neither on the other rows nor on the number of ranks, and not
    on training.
    """

    def __init__(self, num_layers: int, width: int, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_layers, width))
        self.bias = nn.Parameter(torch.zeros(num_layers, width))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        normed = layer_norm(x, self.weight.shape[1:])
        # Under autocast the normalization stays in fp32, and the output has the type of the products around it.
        output = to_autocast(silu(normed * self.weight.unsqueeze(1) + self.bias.unsqueeze(1)))
        # Without dropout no random number is drawn.
        return drop(output, self.dropout, self.training) if self.dropout > 0 else output


def l2_penalty(x: Tensor, strength: float) -> Tensor:
    """Returns x (B, N); its backward adds the gradient of strength / (2 B) * sum over rows of ||x||^2.

    The sum is over the rows whose own gradient is not zero: a row without a label for a task neither trains nor decays
    that task's tables.

    Args:
        x: pooled embeddings.
        strength: weight of the penalty.

    Example::

        x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
        l2_penalty(x, 0.1)[0].sum().backward()
        x.grad  # [[1.05, 1.1], [0, 0]]: 1 + 0.1 / 2 * x in the first row; the second has no gradient
    """
    return _L2Penalty.apply(x, strength)


class _L2Penalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        trained = grad.count_nonzero(dim=1).unsqueeze(1) > 0
        return grad + ctx.strength / max(len(x), 1) * x * trained, None
