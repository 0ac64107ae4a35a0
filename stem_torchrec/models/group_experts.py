"""The experts of a group: MLPs, and what may stand in front of them or inside."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torchrec.modules.crossnet import LowRankCrossNet

from stem_torchrec.models.gates import FeatureGate
from stem_torchrec.models.layers import Experts

ExpertKind = Literal["mlp", "norm", "cross", "cross_norm"]
CROSS_LAYERS = 2
RANK = 64
"""Of the matrices of cross layers and feature gates. It does not depend on the number of features, so that a model with
one more continues those of another (`starting/`)."""


class GroupExperts(nn.Module):
    """K experts of a group behind its feature gate and its cross layers: `(B, in_features) -> (K, B, H)`.

    The gate and the cross layers are those of the group, so what one task's loss trains of them is what it trains of
    the experts. With x_0 the (gated) input, W_l (N, r) and V_l (r, N), the cross layers are

        x_{l+1} = x_0 * (W_l V_l x_l + b_l) + x_l

    Source: Wang et al., "DCN V2", WWW 2021, as TorchRec has it; task-specific interactions below experts are the
    idea of DTN (Bi et al., arXiv 2408.11611), which uses a gated variant of these layers beside others.

    Args:
        kind: `cross` and `cross_norm` have cross layers, `norm` and `cross_norm` NormedSwish in place of ReLU.
        num_experts: K.
        in_features: width N of the input.
        hidden: layer widths of an expert; the last is H.
        dropout: share of hidden units dropped in training.
        feature_gate: whether a FeatureGate scales the input.
    """

    def __init__(
        self,
        kind: ExpertKind,
        num_experts: int,
        in_features: int,
        hidden: Sequence[int],
        *,
        dropout: float = 0.0,
        feature_gate: bool = False,
    ) -> None:
        super().__init__()
        self.feature_gate = FeatureGate(in_features, RANK) if feature_gate else nn.Identity()
        self.cross = LowRankCrossNet(in_features, CROSS_LAYERS, RANK) if "cross" in kind else nn.Identity()
        self.mlp = Experts(num_experts, in_features, hidden, dropout=dropout, norm="norm" in kind)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.cross(self.feature_gate(x)))


def make_experts(
    kind: ExpertKind,
    num_experts: int,
    in_features: int,
    hidden: Sequence[int],
    *,
    dropout: float = 0.0,
    feature_gate: bool = False,
) -> nn.Module:
    """`(B, in_features) -> (K, B, H)`: plain Experts, or GroupExperts, which has the arguments, if they have more."""
    if kind == "mlp" and not feature_gate:
        return Experts(num_experts, in_features, hidden, dropout=dropout)
    return GroupExperts(kind, num_experts, in_features, hidden, dropout=dropout, feature_gate=feature_gate)
