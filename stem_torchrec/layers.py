"""The dense building blocks: MLP, experts, gate."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MLP(nn.Sequential):
    """Linear layers with ReLU between them: `(B, in_features) -> (B, out_features)`.

    Weights start Xavier normal, biases at zero.

    Args:
        in_features: width of the input.
        hidden: widths of the hidden layers, each followed by ReLU and dropout.
        out_features: width of a last layer without ReLU; without it the last hidden layer is the output.
        dropout: share of hidden units dropped in training.
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
            layers += [linear(in_features, width), nn.ReLU()]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
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


class Experts(nn.Module):
    """K expert MLPs that read the same input: `(B, in_features) -> (B, K, H)`, H the last hidden width."""

    def __init__(self, num_experts: int, in_features: int, hidden: Sequence[int], *, dropout: float = 0.0) -> None:
        super().__init__()
        self.experts = nn.ModuleList(MLP(in_features, hidden, dropout=dropout) for _ in range(num_experts))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([expert(x) for expert in self.experts], dim=1)


class Gate(nn.Module):
    """Softmax weights over K experts: `(B, in_features) -> (B, K)`, each row summing to 1.

    The softmax stays in fp32 under autocast.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], num_experts: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.mlp = MLP(in_features, hidden, out_features=num_experts, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.mlp(x), dim=1, dtype=torch.float32)
