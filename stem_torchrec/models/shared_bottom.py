"""The two ends: everything of its own for each task, and everything below the towers shared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Arch
from stem_torchrec.models.frame import InputOptions, MultiTaskModel, at_least_one
from stem_torchrec.models.layers import MLP
from stem_torchrec.models.options import BottomOptions
from stem_torchrec.tables import SHARED


@dataclass(frozen=True)
class SingleTaskOptions(BottomOptions):
    """Options of SingleTask."""

    arch: Arch = "single_task"


@dataclass(frozen=True)
class SharedBottomOptions(BottomOptions):
    """Options of SharedBottom."""

    arch: Arch = "shared_bottom"


class SingleTask(MultiTaskModel):
    """A model for each task, with tables, bottom and tower of its own: logit_t = Tower_t(MLP_t(x_t)).

    No loss reaches a weight of another task. Trained side by side they share the batches and the step whose weights are
    kept; `compare.py` trains each alone, so that they share nothing.

    Args:
        embedding_bag_collection: columns for each task and feature.
        tasks: names of the T tasks, in the order of the logits.
        expert_hidden: layer widths of a bottom.
        tower_hidden: hidden layer widths of a tower.
        dropout: share of hidden units dropped in training.
        inputs: see MultiTaskModel.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        *,
        expert_hidden: Sequence[int] = (512, 512, 512),
        tower_hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        **inputs: Unpack[InputOptions],
    ) -> None:
        super().__init__(embedding_bag_collection, tasks, tasks, **inputs)
        at_least_one(hidden_layers=len(expert_hidden))
        self.bottoms = nn.ModuleDict({t: MLP(self.in_features, expert_hidden, dropout=dropout) for t in tasks})
        self.towers = self.make_towers(expert_hidden[-1], tower_hidden, dropout)

    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{task: (B, in_features)} -> {task: (B, H)}`."""
        return {task: self.bottoms[task](x[task]) for task in self.tasks}


class SharedBottom(MultiTaskModel):
    """One set of tables and one bottom below all towers: logit_t = Tower_t(MLP(x_s)).

    Source: Caruana, "Multitask Learning", Machine Learning 28, 1997; as Ma et al. (KDD 2018), eq. 1 write it.

    Args:
        embedding_bag_collection: columns for "shared" and each feature.
        tasks: names of the T tasks, in the order of the logits.
        expert_hidden: layer widths of the bottom.
        tower_hidden: hidden layer widths of a tower.
        dropout: share of hidden units dropped in training.
        inputs: see MultiTaskModel.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        *,
        expert_hidden: Sequence[int] = (512, 512, 512),
        tower_hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        **inputs: Unpack[InputOptions],
    ) -> None:
        super().__init__(embedding_bag_collection, tasks, (SHARED,), **inputs)
        at_least_one(hidden_layers=len(expert_hidden))
        self.bottom = MLP(self.in_features, expert_hidden, dropout=dropout)
        self.towers = self.make_towers(expert_hidden[-1], tower_hidden, dropout)

    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{"shared": (B, in_features)} -> {task: (B, H)}`."""
        return dict.fromkeys(self.tasks, self.bottom(x[SHARED]))
