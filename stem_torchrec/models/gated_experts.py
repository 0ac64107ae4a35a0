"""Experts behind gates: what MMoE, PLE and STEM are layers of, and AFTB, the backward pass that tells them apart."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stem_torchrec.models.layers import Experts, Gate


class GatedExperts(nn.Module):
    """Groups of experts, and a gate for each stream: `{group: (B, in_features)} -> {stream: (B, H)}`.

    With e_{g,k} the experts of group g and I(s) the groups in the gate's input,

        x_s' = sum over g in reads(s), k:  a_s[g,k] * e_{g,k}(x_g),   a_s = softmax(Gate_s(sum over i in I(s): x_i))

    where the experts of groups outside trains(s) stand under stop-gradient.

    Args:
        in_features: width of each group's input.
        num_experts: experts by group.
        reads: groups whose experts a stream reads, by stream.
        trains: of those, the groups that its loss reaches, by stream.
        gate_inputs: groups whose inputs a gate reads, summed, by stream.
        expert_hidden: layer widths of an expert; the last is H.
        gate_hidden: hidden layer widths of a gate.
        dropout: share of hidden units dropped in training.
    """

    read: Tensor
    trained: Tensor

    def __init__(
        self,
        in_features: int,
        *,
        num_experts: Mapping[str, int],
        reads: Mapping[str, Sequence[str]],
        trains: Mapping[str, Sequence[str]],
        gate_inputs: Mapping[str, Sequence[str]],
        expert_hidden: Sequence[int],
        gate_hidden: Sequence[int],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.streams = tuple(reads)
        self.reads = {stream: [g for g in num_experts if g in groups] for stream, groups in reads.items()}
        self.num_experts = dict(num_experts)
        self.gate_inputs = {stream: tuple(groups) for stream, groups in gate_inputs.items()}
        self.experts = nn.ModuleDict(
            {g: Experts(n, in_features, expert_hidden, dropout=dropout) for g, n in num_experts.items()}
        )
        num_read = {s: sum(num_experts[g] for g in groups) for s, groups in self.reads.items()}
        # A softmax over one expert is 1 and would leave its gate without a gradient.
        self.gates = nn.ModuleDict(
            {s: Gate(in_features, gate_hidden, n, dropout=dropout) for s, n in num_read.items() if n > 1}
        )
        owners = [group for group, n in num_experts.items() for _ in range(n)]
        pairs = [(stream, owner) for stream in self.streams for owner in owners]
        read = [i for i, (stream, owner) in enumerate(pairs) if owner in self.reads[stream]]
        trained = [owner in trains[stream] for stream, owner in pairs]
        self.register_buffer("read", torch.tensor(read), persistent=False)
        self.register_buffer("trained", torch.tensor(trained).view(-1, len(owners)), persistent=False)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        experts = torch.cat([self.experts[group](x[group]) for group in self.experts])
        weights = torch.cat([self._gate(stream, x) for stream in self.streams], dim=1)
        # The experts that a stream does not read have the weight 0.
        weights = weights.new_zeros(weights.shape[0], self.trained.numel()).index_copy(1, self.read, weights)
        mixed = aftb(weights.unflatten(1, self.trained.shape), experts, self.trained).unbind(dim=1)
        return {stream: mixed[i] for i, stream in enumerate(self.streams)}

    def _gate(self, stream: str, x: dict[str, Tensor]) -> Tensor:
        first, *others = self.gate_inputs[stream]
        if stream not in self.gates:
            return torch.ones_like(x[first][:, :1])
        summed = x[first]
        for group in others:
            summed = summed + x[group]
        return self.gates[stream](summed)


def aftb(weights: Tensor, experts: Tensor, trained: Tensor) -> Tensor:
    """Mixtures of experts, all forward, task-specific backward: `(B, S, K), (K, B, H) -> (B, S, H)`.

    Each of S streams reads K experts by its weights; its gradient reaches all weights, but only the experts where
    `trained` (S, K) is true. Forward and backward are one batched matrix product over the rows each, for all streams
    together:

        Y = W E        dW = dY E^T        dE = (W * trained)^T dY
    """
    return _AFTB.apply(weights.to(experts.dtype), experts.transpose(0, 1), trained)


class _AFTB(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, experts: Tensor, trained: Tensor) -> Tensor:
        ctx.save_for_backward(weights, experts, trained)
        return torch.bmm(weights, experts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, experts, trained = ctx.saved_tensors
        return torch.bmm(grad, experts.mT), torch.bmm((weights * trained).mT, grad), None


# The pipeline traces a model with FX, which cannot look into an autograd function: this is one step to it.
torch.fx.wrap("aftb")
