"""Progressive layered extraction: experts of each task beside shared ones, layer on layer.

Source: Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
Recommendations", RecSys 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Arch
from stem_torchrec.models.frame import InputOptions, MultiTaskModel, at_least_one
from stem_torchrec.models.gated_experts import GatedExperts
from stem_torchrec.models.group_experts import ExpertKind, ExpertParts
from stem_torchrec.models.options import CovarianceWeight, LayeredOptions, OwnTableOptions
from stem_torchrec.tables import SHARED, groups_of


@dataclass(frozen=True)
class PLEOptions(LayeredOptions):
    """Options of PLE."""

    arch: Arch = "ple"


@dataclass(frozen=True)
class MEPLEOptions(LayeredOptions, OwnTableOptions):
    """Options of ME-PLE."""

    arch: Arch = "me_ple"
    covariance_weight: CovarianceWeight = 0.0
    """Weight in the loss of the covariances of each task's embeddings and the shared ones, which keeps a task's tables
    from repeating the shared ones (Crocodile)."""


class PLE(MultiTaskModel):
    """Layers in which a task's stream mixes its own and the shared experts, and the shared stream all of them.

        x_t' = sum over g in {t, s}, k: a_t[g,k] e_{g,k}(x_g),   a_t = softmax(Gate_t(x_t)),   first x_g = x_s for all g

    The last layer has no shared stream; one layer is CGC. The published STEM code lets the shared stream read the
    shared experts only, the paper (section 4.2) all. Gates of the paper have no hidden layers.

    Args:
        embedding_bag_collection: columns for "shared" and each feature.
        tasks: names of the T tasks, in the order of the logits.
        num_layers: layers of experts and gates.
        num_shared_experts: shared experts, per layer.
        num_task_experts: experts of each task, per layer.
        expert_hidden: layer widths of an expert.
        gate_hidden: hidden layer widths of a gate.
        tower_hidden: hidden layer widths of a tower.
        dropout: share of hidden units dropped in training.
        expert, cross_layers, feature_gate, prior, rank, self_gate: see LayeredOptions.
        inputs: see MultiTaskModel.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        *,
        num_layers: int = 1,
        num_shared_experts: int = 8,
        num_task_experts: int = 1,
        expert_hidden: Sequence[int] = (512, 512, 512),
        gate_hidden: Sequence[int] = (128, 64),
        tower_hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        expert: ExpertKind = "mlp",
        cross_layers: int = 2,
        feature_gate: bool = False,
        prior: Sequence[str] = (),
        rank: int = 64,
        self_gate: bool = False,
        **inputs: Unpack[InputOptions],
    ) -> None:
        super().__init__(embedding_bag_collection, tasks, self.table_groups(tasks), **inputs)
        at_least_one(
            num_layers=num_layers,
            num_shared_experts=num_shared_experts,
            num_task_experts=num_task_experts,
            hidden_layers=len(expert_hidden),
        )
        groups = groups_of(tasks)
        columns = self.input_columns("--model.prior", prior)
        first = ExpertParts(expert, feature_gate, columns, cross_layers, rank)
        self.layers = nn.ModuleList()
        for layer in range(num_layers):
            streams = groups if layer < num_layers - 1 else tuple(tasks)
            reads = {stream: groups if stream == SHARED else (stream, SHARED) for stream in streams}
            self.layers.append(
                GatedExperts(
                    expert_hidden[-1] if layer else self.in_features,
                    num_experts={g: num_shared_experts if g == SHARED else num_task_experts for g in groups},
                    reads=reads,
                    trains=reads,
                    gate_inputs={stream: (stream,) for stream in streams},
                    expert_hidden=expert_hidden,
                    gate_hidden=gate_hidden,
                    dropout=dropout,
                    # Behind the first layer streams have no columns of features.
                    experts=replace(first, prior=()) if layer else first,
                    self_gate=self_gate,
                )
            )
        self.towers = self.make_towers(expert_hidden[-1], tower_hidden, dropout)

    @staticmethod
    def table_groups(tasks: Sequence[str]) -> tuple[str, ...]:
        """The groups that have tables."""
        return (SHARED,)

    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{"shared": (B, in_features)} -> {task: (B, H)}`."""
        return self.layer_on_layer(dict.fromkeys(groups_of(self.tasks), x[SHARED]))

    def layer_on_layer(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{group: (B, in_features)} -> {task: (B, H)}`."""
        for layer in self.layers:
            x = layer(x)
        return x


class MEPLE(PLE):
    """PLE on multiple embeddings: each group's experts and gate read tables of their own, x_g from the first layer on.

    With one layer a task's loss reaches its own and the shared tables, as in STEM, but its gate reads only their
    experts; with more, the shared stream carries it to all tables. Compared with in arXiv 2308.13537.
    """

    @staticmethod
    def table_groups(tasks: Sequence[str]) -> tuple[str, ...]:
        """Every task's and the shared."""
        return groups_of(tasks)

    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{group: (B, in_features)} -> {task: (B, H)}`."""
        return self.layer_on_layer(x)
