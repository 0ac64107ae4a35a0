"""STEM and single-task models in one: each task also has a stream that reads nothing but its own tables.

Both streams of a task train its tables, each by a loss of its own, and the prediction is between theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Unpack

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Arch
from stem_torchrec.models.frame import InputOptions
from stem_torchrec.models.group_experts import ExpertKind
from stem_torchrec.models.layers import MLP
from stem_torchrec.models.outputs import Outputs
from stem_torchrec.models.stem import STEM, GateInput, Groups, STEMOptions


@dataclass(frozen=True)
class DuetOptions(STEMOptions):
    """Options of Duet."""

    arch: Arch = "duet"
    expert: ExpertKind = "cross"
    """As of STEM; with cross, the MLPs of the own streams stay as they are."""
    own_share: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Share in a prediction's logit of the task's own stream, which reads nothing but the task's tables; the rest is
    that of STEM. With 0 the own stream only trains the tables."""


class Duet(STEM):
    """STEM, and for each task a single-task model on the same tables: rows (B) to logits (B, T), and those of streams.

    With s = own_share, and x_t what task t reads of its own tables,

        stem_t = the logit of STEM,   own_t = Tower'_t(MLP_t(x_t)),   logit_t = (1 - s) stem_t + s own_t
        loss_t = loss(stem_t) + loss(own_t)

    The loss of each stream is that of a model by itself, so neither leaves an error to the other. That of the own
    stream keeps the tables of a task in training where its gate prefers what others know; what the streams get wrong
    differs, so that what lies between them is often better than both. The own stream is trained by its task alone: AFTB
    stays as it is.

    A second loss on an inner stream is deep supervision (Lee et al., "Deeply-Supervised Nets", AISTATS 2015); a mean of
    members with losses of their own is an ensemble (Lakshminarayanan et al., NeurIPS 2017), whose members share tables
    here.

    Args:
        embedding_bag_collection, tasks, expert_hidden, tower_hidden, dropout: see STEM; the MLP of an own stream has
            the widths of an expert.
        expert, own_share: see DuetOptions.
        num_layers, num_shared_experts, num_task_experts, gate_hidden, reads, trains, gate_input, cross_layers,
            feature_gate, prior, rank, self_gate, inputs: see STEM.

    `forward` returns (B, 3 T): the predictions, then the logits of STEM, then those of the own streams. `outputs` tells
    MultiTaskTrain to train these two.

    Example::

        configs = embedding_bag_configs([SparseFeature("uid", 100)], ["finish", "like", "shared"])
        model = Duet(EmbeddingBagCollection(tables=configs), tasks=["finish", "like"])
        features = KeyedJaggedTensor.from_lengths_sync(["uid"], torch.tensor([3, 7]), torch.tensor([1, 1]))
        model(torch.empty(2, 0), features)[:, :2]  # (2, 2), the predictions
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        *,
        expert_hidden: Sequence[int] = (512, 512, 512),
        tower_hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        expert: ExpertKind = "cross",
        own_share: float = 0.2,
        **options: Unpack["_Options"],
    ) -> None:
        super().__init__(
            embedding_bag_collection,
            tasks,
            expert_hidden=expert_hidden,
            tower_hidden=tower_hidden,
            dropout=dropout,
            expert=expert,
            **options,
        )
        self.own_share = own_share
        self.bottoms = nn.ModuleDict({t: MLP(self.in_features, expert_hidden, dropout=dropout) for t in tasks})
        of_own = self.make_towers(expert_hidden[-1], tower_hidden, dropout)
        self.towers = nn.ModuleDict({t: SideBySide([self.towers[t], of_own[t]]) for t in tasks})

    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{group: (B, in_features)} -> {task: (B, 2 H)}`, the two streams side by side."""
        own = {task: self.bottoms[task](x[task]) for task in self.bottoms}
        mixed = super().arch(x)
        return {task: torch.cat([mixed[task], own[task]], dim=1) for task in own}

    def logits(self, towers: Tensor) -> Tensor:
        """From the towers' outputs (B, 2 T), two columns for each task, to predictions and streams (B, 3 T)."""
        stem, own = towers[:, ::2], towers[:, 1::2]
        return torch.cat([(1 - self.own_share) * stem + self.own_share * own, stem, own], dim=1)

    @property
    def outputs(self) -> Outputs:
        """The predictions, and two streams that are trained in their place."""
        return replace(super().outputs, streams=2)


class _Options(InputOptions, total=False):
    """Arguments of STEM that Duet takes by name."""

    num_layers: int
    num_shared_experts: int
    num_task_experts: int
    gate_hidden: Sequence[int]
    reads: Groups
    trains: Groups
    gate_input: GateInput
    cross_layers: int
    feature_gate: bool
    prior: Sequence[str]
    rank: int
    self_gate: bool


class SideBySide(nn.ModuleList):
    """Towers that read one equal part of the columns each, and put out a column each: `(B, n H) -> (B, n)`."""

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self), dim=1)
        return torch.cat([self[i](parts[i]) for i in range(len(self))], dim=1)
