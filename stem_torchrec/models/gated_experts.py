"""Experts behind gates: what MMoE, PLE and STEM are layers of."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from stem_torchrec.models.aftb import aftb
from stem_torchrec.models.gates import Gate, SelfGate
from stem_torchrec.models.group_experts import PLAIN, ExpertParts, make_experts

# The pipeline traces a model with FX, which cannot look into an autograd function: in this file it is one step to FX.
torch.fx.wrap("aftb")


class GatedExperts(nn.Module):
    """Groups of experts, and a gate for each stream: `{group: (B, in_features)} -> {stream: (B, H)}`.

    With e_{g,k} the experts of group g and I(s) the groups in the gate's input,

        x_s' = sum over g in reads(s), k:  a_s[g,k] * e_{g,k}(x_g),   a_s = softmax(Gate_s(sum over i in I(s): x_i))

    where the experts of groups outside trains(s) stand under stop-gradient (`models/aftb.py`). What a stream does not
    read does not enter its sum, whatever it is. With self gates a stream that has experts of its own reads them once
    more, past the others: a_s[s,k] + SelfGate_s(...)[k] in place of a_s[s,k]. Where gates join their inputs, a gate
    reads [x_i for i in I(s)] in the place of the sum, and a self gate x_s alone.

    Args:
        in_features: width of each group's input.
        num_experts: experts by group.
        reads: groups whose experts a stream reads, by stream.
        trains: of those, the groups that its loss reaches, by stream.
        gate_inputs: groups whose inputs a gate reads, summed, by stream.
        joins_gate_inputs: whether it reads them side by side in place of their sum.
        expert_hidden: layer widths of an expert; the last is H.
        gate_hidden: hidden layer widths of a gate.
        dropout: share of hidden units dropped in training.
        experts: what they are made of, see GroupExperts.
        self_gate: whether there are self gates (HoME, arXiv 2408.05430), which keep a task's own experts in training
            where its gate prefers the shared ones.

    Example::

        reads = {"like": ("like", "shared"), "share": ("share", "shared")}
        layer = GatedExperts(
            24, num_experts={"like": 1, "share": 1, "shared": 4}, reads=reads, trains=reads,
            gate_inputs={"like": ("like",), "share": ("share",)}, expert_hidden=(64, 32), gate_hidden=(16,),
        )
        layer({group: torch.randn(5, 24) for group in ("like", "share", "shared")})["like"].shape  # (5, 32)
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_experts: Mapping[str, int],
        reads: Mapping[str, Sequence[str]],
        trains: Mapping[str, Sequence[str]],
        gate_inputs: Mapping[str, Sequence[str]],
        joins_gate_inputs: bool = False,
        expert_hidden: Sequence[int],
        gate_hidden: Sequence[int],
        dropout: float = 0.0,
        experts: ExpertParts = PLAIN,
        self_gate: bool = False,
    ) -> None:
        super().__init__()
        self.streams = tuple(reads)
        self.reads = {stream: [g for g in num_experts if g in groups] for stream, groups in reads.items()}
        self.num_experts = dict(num_experts)
        self.gate_inputs = {stream: tuple(groups) for stream, groups in gate_inputs.items()}
        self.joins_gate_inputs = joins_gate_inputs
        self.experts = nn.ModuleDict(
            {g: make_experts(experts, n, in_features, expert_hidden, dropout=dropout) for g, n in num_experts.items()}
        )
        num_read = {s: sum(num_experts[g] for g in groups) for s, groups in self.reads.items()}
        widths = {s: in_features * (len(groups) if joins_gate_inputs else 1) for s, groups in self.gate_inputs.items()}
        # A softmax over one expert is 1 and would leave its gate without a gradient.
        self.gates = nn.ModuleDict(
            {s: Gate(widths[s], gate_hidden, n, dropout=dropout) for s, n in num_read.items() if n > 1}
        )
        self.self_gates = nn.ModuleDict(
            {
                s: SelfGate(in_features, gate_hidden, num_experts[s], dropout=dropout)
                for s, groups in self.reads.items()
                if self_gate and s in groups
            }
        )
        self.products = nn.ModuleList(
            _Product(groups, {stream: self.reads[stream] for stream in streams}, self.num_experts, trains)
            for streams, groups in self._read_together().items()
        )

    def _read_together(self) -> dict[tuple[str, ...], list[str]]:
        """The groups by the streams that read them: one product serves the groups that have the same readers."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for group in self.num_experts:
            readers = tuple(stream for stream in self.streams if group in self.reads[stream])
            if readers:
                groups.setdefault(readers, []).append(group)
        return groups

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        experts = {group: self.experts[group](x[group]) for group in self.experts}
        weights = {stream: self._gate(stream, x) for stream in self.streams}
        mixed: dict[str, Tensor] = {}
        for product in self.products:
            for stream, part in product(weights, experts).items():
                mixed[stream] = mixed[stream] + part if stream in mixed else part
        return {stream: mixed[stream] for stream in self.streams}

    def keep_streams(self, streams: Collection[str]) -> tuple[str, ...]:
        """Drops the gates and experts that only other streams read; returns the groups whose inputs are still read."""
        self.streams = tuple(stream for stream in self.streams if stream in streams)
        self.reads = {stream: self.reads[stream] for stream in self.streams}
        read = {group for groups in self.reads.values() for group in groups}
        self.experts = nn.ModuleDict({group: self.experts[group] for group in self.experts if group in read})
        self.gates = nn.ModuleDict({stream: self.gates[stream] for stream in self.gates if stream in self.streams})
        products = [product for product in self.products if isinstance(product, _Product)]
        self.products = nn.ModuleList(product for product in products if product.keep_streams(self.streams))
        self.self_gates = nn.ModuleDict({s: self.self_gates[s] for s in self.self_gates if s in self.streams})
        gated = {group for stream in self.streams for group in self.gate_inputs[stream]}
        return tuple(group for group in dict.fromkeys([*self.num_experts, *gated]) if group in read | gated)

    def _gate(self, stream: str, x: dict[str, Tensor]) -> Tensor:
        first, *others = self.gate_inputs[stream]
        seen = x[first]
        for group in others:
            seen = torch.cat([seen, x[group]], dim=1) if self.joins_gate_inputs else seen + x[group]
        weights = self.gates[stream](seen) if stream in self.gates else torch.ones_like(seen[:, :1])
        if stream not in self.self_gates:
            return weights
        sizes = [self.num_experts[group] for group in self.reads[stream]]
        before = self.reads[stream].index(stream)
        own = self.self_gates[stream](x[stream] if self.joins_gate_inputs else seen)
        return weights + pad(own, (sum(sizes[:before]), sum(sizes[before + 1 :])))


class _Product(nn.Module):
    """The part of the mixtures that comes from groups of experts that the same streams read.

    Args:
        groups: the groups.
        reads: all groups that each of the streams reads, in the order of its weights.
        num_experts: experts by group.
        trains: groups that a stream's loss reaches.
    """

    trained: Tensor

    def __init__(
        self,
        groups: Sequence[str],
        reads: Mapping[str, Sequence[str]],
        num_experts: Mapping[str, int],
        trains: Mapping[str, Sequence[str]],
    ) -> None:
        super().__init__()
        self.groups = tuple(groups)
        self.columns = {stream: _columns(self.groups, read, num_experts) for stream, read in reads.items()}
        trained = [[group in trains[stream] for group in groups for _ in range(num_experts[group])] for stream in reads]
        self.register_buffer("trained", torch.tensor(trained), persistent=False)

    def keep_streams(self, streams: Collection[str]) -> bool:
        """Drops the other streams; returns whether any is left."""
        rows = [i for i, stream in enumerate(self.columns) if stream in streams]
        self.columns = {stream: columns for stream, columns in self.columns.items() if stream in streams}
        self.trained = self.trained[rows]
        return bool(rows)

    def forward(self, weights: dict[str, Tensor], experts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights by stream, (B, K) of what it reads, and experts by group, (K_g, B, H): `{stream: (B, H)}`."""
        read = torch.stack([weights[stream][:, columns] for stream, columns in self.columns.items()], dim=1)
        outputs = [experts[group] for group in self.groups]
        mixed = aftb(read, torch.cat(outputs) if len(outputs) > 1 else outputs[0], self.trained).unbind(dim=1)
        return {stream: mixed[i] for i, stream in enumerate(self.columns)}


def _columns(groups: Sequence[str], read: Sequence[str], num_experts: Mapping[str, int]) -> slice | list[int]:
    """Where the weights of the experts of `groups` stand among those of all groups that a stream reads."""
    owners = [group for group in read for _ in range(num_experts[group])]
    columns = [i for i, owner in enumerate(owners) if owner in groups]
    start, stop = columns[0], columns[-1] + 1
    return slice(start, stop) if len(columns) == stop - start else columns
