"""The experts of a group: MLPs, and what may stand in front of them or inside."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torchrec.modules.crossnet import LowRankCrossNet

from stem_torchrec.models.gates import FeatureGate, PriorGate
from stem_torchrec.models.layers import Experts

ExpertKind = Literal["mlp", "norm", "cross", "cross_norm"]


@dataclass(frozen=True)
class ExpertParts:
    """What the experts of a group are made of."""

    kind: ExpertKind = "mlp"
    """`cross` and `cross_norm` have cross layers, `norm` and `cross_norm` NormedSwish in place of ReLU."""
    feature_gate: bool = False
    """Whether a FeatureGate scales the input."""
    prior: Sequence[slice] = ()
    """The columns of the input by which a PriorGate scales it; without any there is no such gate."""
    cross_layers: int = 2
    rank: int = 64
    """Of the matrices of cross layers and feature gates, and the hidden width of a PriorGate. It does not depend on the
    number of features, so that a model with one more continues those of another (`starting/`)."""

    @property
    def plain(self) -> bool:
        """Whether there are MLPs alone."""
        return self.kind == "mlp" and not self.feature_gate and not self.prior


PLAIN = ExpertParts()
"""MLPs alone."""


class GroupExperts(nn.Module):
    """K experts of a group behind its gates and its cross layers: `(B, in_features) -> (K, B, H)`.

    The gates and the cross layers are those of the group, so what one task's loss trains of them is what it trains of
    the experts. With x the input, x_P the prior columns of it, and G the PriorGate, the gates give FeatureGate(G(x_P,
    x) * x). With x_0 the (gated) input, W_l (N, r) and V_l (r, N), the cross layers are

        x_{l+1} = x_0 * (W_l V_l x_l + b_l) + x_l

    Source: Wang et al., "DCN V2", WWW 2021, as TorchRec has it; task-specific interactions below experts are the
    idea of DTN (Bi et al., arXiv 2408.11611), which uses a gated variant of these layers beside others. The PriorGate
    is that of PEPNet (Chang et al., KDD 2023, arXiv 2302.01115) on the embeddings.

    Args:
        parts: what is in front of the experts and inside.
        num_experts: K.
        in_features: width N of the input.
        hidden: layer widths of an expert; the last is H.
        dropout: share of hidden units dropped in training.
    """

    def __init__(
        self,
        parts: ExpertParts,
        num_experts: int,
        in_features: int,
        hidden: Sequence[int],
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        kind, rank = parts.kind, parts.rank
        self.feature_gate = FeatureGate(in_features, rank) if parts.feature_gate else nn.Identity()
        self.cross = LowRankCrossNet(in_features, parts.cross_layers, rank) if "cross" in kind else nn.Identity()
        self.mlp = Experts(num_experts, in_features, hidden, dropout=dropout, norm="norm" in kind)
        self.prior = tuple(parts.prior)
        if self.prior:
            self.prior_gate = PriorGate(sum(each.stop - each.start for each in self.prior), in_features, rank)

    def forward(self, x: Tensor) -> Tensor:
        if self.prior:
            x = self.prior_gate(x, x, torch.cat([x[:, columns] for columns in self.prior], dim=1))
        return self.mlp(self.cross(self.feature_gate(x)))


def make_experts(
    parts: ExpertParts, num_experts: int, in_features: int, hidden: Sequence[int], *, dropout: float = 0.0
) -> nn.Module:
    """`(B, in_features) -> (K, B, H)`: plain Experts, or GroupExperts, which has the arguments, if they have more."""
    if parts.plain:
        return Experts(num_experts, in_features, hidden, dropout=dropout)
    return GroupExperts(parts, num_experts, in_features, hidden, dropout=dropout)
