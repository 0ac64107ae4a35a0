"""PEPNet: gates that scale the embeddings and each task's layers by what some features say, as who looks at what.

Source: Chang et al., "PEPNet: Parameter and Embedding Personalized Network for Infusing with Personalized Prior
Information", KDD 2023, arXiv 2302.01115.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Arch, Width
from stem_torchrec.models.frame import InputOptions, MultiTaskModel, at_least_one
from stem_torchrec.models.gates import PriorGate
from stem_torchrec.models.layers import linear, relu
from stem_torchrec.models.options import BottomOptions
from stem_torchrec.tables import SHARED


@dataclass(frozen=True)
class PEPNetOptions(BottomOptions):
    """Options of PEPNet."""

    arch: Arch = "pepnet"
    prior: tuple[str, ...] = ()
    """Sparse features whose embeddings decide how each task's layers are scaled, as user and author; none means all."""
    domain: tuple[str, ...] = ()
    """Sparse features whose embeddings decide how all embeddings are scaled, as the page; none means no such gate."""
    gate_width: Width = 64
    """Hidden width of a gate."""


class PEPNet(MultiTaskModel):
    """A bottom for each task on the shared tables, whose layers' inputs are scaled by gates from 0 to 2.

    With the gate unit G(p, x) = 2 sigmoid(W' relu(W [p, stop(x)] + b) + b'), the embeddings x and the columns x_D and
    x_P of the domain and the prior features:

        o = G(x_D, x) * x   or x without domain features
        h_0 = o,   h_{l+1} = relu(W_{t,l} (G_{t,l}(x_P, o) * h_l) + b_{t,l}),   logit_t = Tower_t(h_L)

    In the paper all layers of a task have gates, up to the last; here they end below the tower. Its prior features are
    the user, the item and its author, and its domain has statistics beside an id.

    Args:
        embedding_bag_collection: columns for "shared" and each feature.
        tasks: names of the T tasks, in the order of the logits.
        expert_hidden: layer widths of a bottom.
        prior, domain, gate_width: see PEPNetOptions.
        tower_hidden: hidden layer widths of a tower, which has no gates.
        dropout: share of hidden units dropped in training.
        inputs: see MultiTaskModel.

    Raises UserError for a prior or domain feature that has no table.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        *,
        expert_hidden: Sequence[int] = (512, 512, 512),
        prior: Sequence[str] = (),
        domain: Sequence[str] = (),
        gate_width: int = 64,
        tower_hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        **inputs: Unpack[InputOptions],
    ) -> None:
        super().__init__(embedding_bag_collection, tasks, (SHARED,), **inputs)
        at_least_one(hidden_layers=len(expert_hidden))
        self.prior = self.input_columns("--model.prior", prior) if prior else [slice(0, self.in_features)]
        self.domain = self.input_columns("--model.domain", domain)
        if domain:
            domain_width = sum(columns.stop - columns.start for columns in self.domain)
            self.domain_gate = PriorGate(domain_width, self.in_features, gate_width)
        prior_width = sum(columns.stop - columns.start for columns in self.prior)
        self.bottoms = nn.ModuleDict(
            {
                task: GatedBottom(self.in_features, prior_width, expert_hidden, gate_width=gate_width, dropout=dropout)
                for task in tasks
            }
        )
        self.towers = self.make_towers(expert_hidden[-1], tower_hidden, dropout)

    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{"shared": (B, in_features)} -> {task: (B, H)}`."""
        embeddings = x[SHARED]
        prior = torch.cat([embeddings[:, columns] for columns in self.prior], dim=1)
        if self.domain:
            domain = torch.cat([embeddings[:, columns] for columns in self.domain], dim=1)
            embeddings = self.domain_gate(embeddings, embeddings, domain)
        return {task: self.bottoms[task](embeddings, prior) for task in self.tasks}


class GatedBottom(nn.Module):
    """Linear layers with ReLU, each behind a gate: `(B, in_features), (B, P) -> (B, H)`.

    Args:
        in_features: width of the input.
        prior_features: width P of what the gates decide by, beside the input.
        hidden: layer widths; the last is H.
        gate_width: hidden width of a gate.
        dropout: share of hidden units dropped in training.
    """

    def __init__(
        self, in_features: int, prior_features: int, hidden: Sequence[int], *, gate_width: int, dropout: float
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden]
        self.gates = nn.ModuleList(
            PriorGate(prior_features, in_features, gate_width, out_features=width) for width in widths[:-1]
        )
        self.layers = nn.ModuleList(
            nn.Sequential(linear(width, following), relu(dropout))
            for width, following in zip(widths[:-1], hidden, strict=True)
        )

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:
        h = x
        for i, layer in enumerate(self.layers):
            h = layer(self.gates[i](h, x, prior))
        return h
