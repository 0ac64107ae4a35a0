"""Gates: weights of experts, and factors of columns."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stem_torchrec.models.layers import MLP, linear


class Gate(nn.Module):
    """Softmax weights over K experts: `(B, in_features) -> (B, K)`, each row summing to 1.

    The softmax stays in fp32 under autocast.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], num_experts: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.mlp = MLP(in_features, hidden, out_features=num_experts, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.mlp(x), dim=1, dtype=torch.float32)


class SelfGate(nn.Module):
    """Weights of a stream's own K experts, beside those of its Gate: `(B, in_features) -> (B, K)`.

    A softmax, or of a single expert the sigmoid. It stays in fp32 under autocast.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], num_experts: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.mlp = MLP(in_features, hidden, out_features=num_experts, dropout=dropout)
        self.num_experts = num_experts

    def forward(self, x: Tensor) -> Tensor:
        logits = self.mlp(x).float()
        return torch.softmax(logits, dim=1) if self.num_experts > 1 else torch.sigmoid(logits)


class FeatureGate(nn.Module):
    """Scales each column of the input by a number from 0 to 2 that depends on all of them: `(B, N) -> (B, N)`.

        x * 2 sigmoid(U V x),   V (r, N), U (N, r)

    Source: HoME, arXiv 2408.05430, the feature gate, which weighs the factors of several such pairs of matrices there.
    """

    def __init__(self, in_features: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, in_features, bias=False)
        nn.init.xavier_normal_(self.down.weight)
        nn.init.xavier_normal_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 * torch.sigmoid(self.up(self.down(x)).float()))


class PriorGate(nn.Module):
    """PEPNet's gate unit: scales each of H columns by a number from 0 to 2: `(B, H), (B, N), (B, P) -> (B, H)`.

        h * 2 sigmoid(W' relu(W [p, stop(x)] + b) + b')

    The input x, under stop-gradient, and the prior p decide. W is kept in two parts.

    Args:
        prior_features: P.
        in_features: N.
        width: hidden width.
        out_features: H; N by default.
    """

    def __init__(self, prior_features: int, in_features: int, width: int, *, out_features: int | None = None) -> None:
        super().__init__()
        self.of_prior = linear(prior_features, width)
        self.of_input = nn.Linear(in_features, width, bias=False)
        nn.init.xavier_normal_(self.of_input.weight)
        self.last = linear(width, in_features if out_features is None else out_features)

    def forward(self, h: Tensor, x: Tensor, prior: Tensor) -> Tensor:
        hidden = torch.relu(self.of_prior(prior) + self.of_input(x.detach()))
        return h * (2 * torch.sigmoid(self.last(hidden).float()))
