"""Mixtures of experts that all tasks share: OMoE and MMoE on one set of tables, ME-MMoE on one for each task.

Source: Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

from torch import Tensor
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Arch
from stem_torchrec.models.frame import InputOptions, MultiTaskModel, at_least_one
from stem_torchrec.models.gated_experts import GatedExperts
from stem_torchrec.models.group_experts import ExpertKind, ExpertParts
from stem_torchrec.models.options import CovarianceWeight, ExpertKindOptions, Experts, OwnTableOptions
from stem_torchrec.tables import SHARED, groups_of


@dataclass(frozen=True)
class MMoEOptions(ExpertKindOptions):
    """Options of MMoE."""

    arch: Arch = "mmoe"
    num_shared_experts: Experts = 8
    """Experts, and --model.num-task-experts more for each task: as many as STEM has, but all of them shared."""
    num_task_experts: Experts = 1
    """Experts for each task, all of them shared."""


@dataclass(frozen=True)
class OMoEOptions(MMoEOptions):
    """Options of OMoE, those of MMoE."""

    arch: Arch = "omoe"


@dataclass(frozen=True)
class MEMMoEOptions(ExpertKindOptions, OwnTableOptions):
    """Options of ME-MMoE."""

    arch: Arch = "me_mmoe"
    covariance_weight: CovarianceWeight = 0.0
    """Weight in the loss of the covariances of each task's embeddings and the shared ones, which keeps a task's tables
    from repeating the shared ones (Crocodile)."""


class _Options(InputOptions, total=False):
    """Arguments of a mixture that its models hand on by name."""

    expert_hidden: Sequence[int]
    gate_hidden: Sequence[int]
    tower_hidden: Sequence[int]
    dropout: float
    expert: ExpertKind
    cross_layers: int
    feature_gate: bool
    prior: Sequence[str]
    rank: int


class _MoE(MultiTaskModel):
    """One layer of experts, all read and trained by all streams, which the gates of `gate_inputs` mix."""

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        num_experts: Mapping[str, int],
        gate_inputs: Mapping[str, Sequence[str]],
        *,
        expert_hidden: Sequence[int] = (512, 512, 512),
        gate_hidden: Sequence[int] = (128, 64),
        tower_hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        expert: ExpertKind = "mlp",
        cross_layers: int = 2,
        feature_gate: bool = False,
        prior: Sequence[str] = (),
        rank: int = 64,
        **inputs: Unpack[InputOptions],
    ) -> None:
        super().__init__(embedding_bag_collection, tasks, tuple(num_experts), **inputs)
        at_least_one(experts=min(num_experts.values()), hidden_layers=len(expert_hidden))
        everything = dict.fromkeys(gate_inputs, tuple(num_experts))
        self.mixture = GatedExperts(
            self.in_features,
            num_experts=num_experts,
            reads=everything,
            trains=everything,
            gate_inputs=gate_inputs,
            expert_hidden=expert_hidden,
            gate_hidden=gate_hidden,
            dropout=dropout,
            experts=ExpertParts(expert, feature_gate, self.input_columns("--model.prior", prior), cross_layers, rank),
        )
        self.towers = self.make_towers(expert_hidden[-1], tower_hidden, dropout)

    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{group: (B, in_features)} -> {task: (B, H)}`."""
        return self.mixture(x)


class MMoE(_MoE):
    """Multi-gate mixture of experts, eq. 6 to 8: x_t = sum_k a_t[k] e_k(x_s), a_t = softmax(Gate_t(x_s)).

    Args:
        embedding_bag_collection: columns for "shared" and each feature.
        tasks: names of the T tasks, in the order of the logits.
        num_shared_experts, num_task_experts: K is the first plus T times the second, so as many experts as STEM has.
        expert_hidden: layer widths of an expert.
        gate_hidden: hidden layer widths of a gate; the paper's gates have none.
        tower_hidden: hidden layer widths of a tower.
        dropout: share of hidden units dropped in training.
        expert, cross_layers, feature_gate, prior, rank: see ExpertKindOptions.
        inputs: see MultiTaskModel.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        *,
        num_shared_experts: int = 8,
        num_task_experts: int = 1,
        **options: Unpack[_Options],
    ) -> None:
        super().__init__(
            embedding_bag_collection,
            tasks,
            {SHARED: num_shared_experts + len(tasks) * num_task_experts},
            dict.fromkeys(tasks, (SHARED,)),
            **options,
        )


class OMoE(_MoE):
    """One-gate mixture of experts, eq. 5: the same mixture x' = sum_k a[k] e_k(x_s) for all tasks; see MMoE."""

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        *,
        num_shared_experts: int = 8,
        num_task_experts: int = 1,
        **options: Unpack[_Options],
    ) -> None:
        super().__init__(
            embedding_bag_collection,
            tasks,
            {SHARED: num_shared_experts + len(tasks) * num_task_experts},
            {SHARED: (SHARED,)},
            **options,
        )

    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{"shared": (B, in_features)} -> {task: (B, H)}`."""
        return dict.fromkeys(self.tasks, super().arch(x)[SHARED])


class MEMMoE(_MoE):
    """MMoE on multiple embeddings: experts on tables of each group, all read and trained by every task.

    As MMoE with e_{g,k}(x_g) for e_k(x_s) and a_t = softmax(Gate_t(x_t)), so a task's loss reaches all tables. It is
    STEM without the stop-gradient, gated by the task's own embeddings; compared with in arXiv 2308.13537.

    Args:
        embedding_bag_collection: columns for each task and feature, and for "shared" and each feature.
        tasks: names of the T tasks, in the order of the logits.
        num_shared_experts: experts on the shared tables.
        num_task_experts: experts on each task's tables.
        expert_hidden: layer widths of an expert.
        gate_hidden: hidden layer widths of a gate.
        tower_hidden: hidden layer widths of a tower.
        dropout: share of hidden units dropped in training.
        expert, cross_layers, feature_gate, prior, rank: see ExpertKindOptions.
        inputs: see MultiTaskModel.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        *,
        num_shared_experts: int = 8,
        num_task_experts: int = 1,
        **options: Unpack[_Options],
    ) -> None:
        super().__init__(
            embedding_bag_collection,
            tasks,
            {g: num_shared_experts if g == SHARED else num_task_experts for g in groups_of(tasks)},
            {task: (task,) for task in tasks},
            **options,
        )
