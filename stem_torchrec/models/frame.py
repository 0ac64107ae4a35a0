"""What all models share: tables -> arch -> towers."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.models.layers import MLP, l2_penalty, linear
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import SparseArch

# The pipeline traces a model with FX, which cannot look into an autograd function: in this file it is one step to FX.
torch.fx.wrap("l2_penalty")


class InputOptions(TypedDict, total=False):
    """Arguments about its input that every model takes by name; see MultiTaskModel."""

    dense_in_features: int
    dense_out_features: int
    embedding_dropout: float
    embedding_l2: float


class MultiTaskModel(nn.Module):
    """Maps a batch of B rows to logits (B, T): tables of some groups, then an arch, then a tower for each task.

        ids of F features -> tables -> {group: (B, in_features)} -> arch -> {task: (B, H)} -> towers -> (B, T)

    A subclass creates its layers, then its towers by `make_towers`, and defines `arch`; docs/add_a_model.md shows one.

    Args:
        embedding_bag_collection: columns for each group and feature, in tables named as
            `tables.embedding_bag_configs` names them in either layout.
        tasks: names of the T tasks, in the order of the logits.
        groups: the groups that have tables.
        dense_in_features: number of dense features.
        dense_out_features: width to which each group projects them on its own.
        embedding_dropout: share of the arch's input dropped in training.
        embedding_l2: weight of half the squared norm of the pooled embeddings of the rows that train them, over B.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        tasks: Sequence[str],
        groups: Sequence[str],
        *,
        dense_in_features: int = 0,
        dense_out_features: int = 16,
        embedding_dropout: float = 0.0,
        embedding_l2: float = 0.0,
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.sparse_arch = SparseArch(embedding_bag_collection, groups)
        self.dense_arch = nn.ModuleDict(
            {g: linear(dense_in_features, dense_out_features) for g in groups if dense_in_features > 0}
        )
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.embedding_l2 = embedding_l2
        self.in_features = self.sparse_arch.out_features[groups[0]] + (dense_out_features if self.dense_arch else 0)
        self.towers: nn.ModuleDict

    def make_towers(self, in_features: int, hidden: Sequence[int], dropout: float) -> nn.ModuleDict:
        """An MLP from (B, in_features) to a logit (B, 1) for each task."""
        return nn.ModuleDict({task: MLP(in_features, hidden, out_features=1, dropout=dropout) for task in self.tasks})

    @abstractmethod
    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{group: (B, in_features)} -> {task: (B, H)}`, from the groups' inputs to the towers'."""

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        x = self.sparse_arch(sparse_features)
        if self.embedding_l2 > 0:
            x = {g: l2_penalty(x[g], self.embedding_l2) for g in x}
        if self.dense_arch:
            x = {g: torch.cat([x[g], self.dense_arch[g](dense_features)], dim=1) for g in x}
        x = self.arch({g: self.embedding_dropout(x[g]) for g in x})
        return self.logits(torch.cat([self.towers[task](x[task]) for task in self.tasks], dim=1))

    def logits(self, towers: Tensor) -> Tensor:
        """The logits (B, T) from the towers' outputs (B, T), which they are unless the tasks depend on each other."""
        return towers


def at_least_one(**sizes: int) -> None:
    """Raises UserError for the first of a model's sizes that is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"the model's {name} is {size}, but must be at least 1.")
