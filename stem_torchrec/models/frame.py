"""What all models share: tables -> arch -> towers -> what the loss reads, as `outputs.py` has it."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.balance.shared_output import SharedOutput
from stem_torchrec.models.covariance import covariance_penalty
from stem_torchrec.models.layers import MLP, l2_penalty, linear
from stem_torchrec.models.links import Link, typed_links
from stem_torchrec.models.outputs import Outputs
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.tables import ALL_TABLES, SHARED, GroupInputs, SparseArch, TableChoice, groups_of

# The pipeline traces a model with FX, which cannot look into an autograd function or follow a decision about shapes: in
# this file each of these is one step to FX.
torch.fx.wrap("l2_penalty")
torch.fx.wrap("covariance_penalty")
torch.fx.wrap("check_dense")


class InputOptions(TypedDict, total=False):
    """Arguments that every model takes by name and hands on as they are; see MultiTaskModel."""

    dense_in_features: int
    dense_out_features: int
    embedding_dropout: float
    embedding_l2: float
    covariance_weight: float
    table_choice: TableChoice
    links: Mapping[str, Link]


class MultiTaskModel(nn.Module):
    """Maps a batch of B rows to logits (B, T): tables of some groups, then an arch, then a tower for each task.

        ids of F features -> tables -> {group: (B, in_features)} -> arch -> {task: (B, H)} -> towers -> (B, T)

    A subclass creates its layers, then its towers by `make_towers`, and defines `arch`; docs/add_a_model.md shows one.
    If its `logits` are more than (B, T), as those of Duet, ESCM2 and DCMT, it declares so by `outputs`, which is all
    that MultiTaskTrain knows of a model (`models/outputs.py`).

    Args:
        embedding_bag_collection: columns for each group and feature, in tables named as
            `tables.embedding_bag_configs` names them in either layout.
        tasks: names of the T tasks, in the order of the logits.
        groups: the groups that the arch reads.
        dense_in_features: number of dense features.
        dense_out_features: width to which each group projects them on its own.
        embedding_dropout: share of the arch's input dropped in training.
        embedding_l2: weight of half the squared norm of the pooled embeddings of the rows that train them, over B.
        covariance_weight: weight of the covariances of each task's pooled embeddings and the shared ones, in training;
            see covariance_penalty.
        table_choice: which groups have a table of which feature, as the collection was built; by default each of all.
            What a group reads in the place of a table that it lacks stands in `tables/inputs.py`.
        links: from the logit to the prediction, by task, of tasks that are not binary (`models/links.py`).

    Raises UserError for tasks that cannot name a group, a link of another task, a group without tables or without a
    feature that another has, and in `forward` for a batch that does not have the model's dense features, or see
    SparseArch.
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
        covariance_weight: float = 0.0,
        table_choice: TableChoice = ALL_TABLES,
        links: Mapping[str, Link] | None = None,
    ) -> None:
        super().__init__()
        groups_of(tasks)  # Refuses tasks that cannot name a group, whichever groups the model has.
        self.tasks = tuple(tasks)
        self.groups = tuple(groups)
        self.sparse_arch = SparseArch(embedding_bag_collection, table_choice.groups_of_tables(groups))
        self.inputs = GroupInputs(self.sparse_arch.columns, groups, table_choice)
        self.dense_in_features = dense_in_features
        self.dense_arch = nn.ModuleDict(
            {g: linear(dense_in_features, dense_out_features) for g in groups if dense_in_features > 0}
        )
        self.embedding_dropout = nn.Dropout(embedding_dropout)
        self.embedding_l2 = embedding_l2
        self.covariance_weight = covariance_weight
        self.in_features = self.inputs.width + (dense_out_features if self.dense_arch else 0)
        self.towers: nn.ModuleDict
        self.further_towers = nn.ModuleDict()
        """Towers whose outputs only a model's own losses read, as ESCM2's; by task, on the input of its tower."""
        self.links = nn.ModuleDict(links)
        check_links(self.links, tasks)
        self.frozen: frozenset[str] = frozenset()
        """Groups that are not trained; `weight_groups.freeze` adds some."""
        self.shared_output: SharedOutput | None = None
        """Where gradients of the tasks are balanced (`models/balanced.py`)."""

    def input_columns(self, option: str, features: Sequence[str]) -> list[slice]:
        """Where features stand in a group's input; raises UserError, which names the option, for one without a table.

        Example::

            # tables of uid, 16 wide, and tags, 8 wide
            model.input_columns("--model.prior", ["tags"])  # [slice(16, 24)]
        """
        slices: dict[str, slice] = {}
        start = 0
        for name, width in self.inputs.columns:
            slices[name] = slice(start, start + width)
            start += width
        for name in features:
            if name not in slices:
                raise UserError(
                    f"{option} names the feature {name!r}, but the model has tables of {', '.join(slices)} only"
                    f"{nearest(name, list(slices)) or '.'}"
                )
        return [slices[name] for name in features]

    def make_towers(self, in_features: int, hidden: Sequence[int], dropout: float) -> nn.ModuleDict:
        """An MLP from (B, in_features) to a logit (B, 1) for each task."""
        return nn.ModuleDict({task: MLP(in_features, hidden, out_features=1, dropout=dropout) for task in self.tasks})

    @abstractmethod
    def arch(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """`{group: (B, in_features)} -> {task: (B, H)}`, from the groups' inputs to the towers'."""

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        check_dense(dense_features, sparse_features, self.dense_in_features)
        return self.above_tables(dense_features, self.sparse_arch(sparse_features))

    def above_tables(self, dense_features: Tensor, x: dict[str, Tensor]) -> Tensor:
        """What `outputs` declares, from the dense features (B, N) and the pooled embeddings of the groups of tables."""
        if self.frozen:
            # Ahead of the lookup's backward, where the optimizers of tables keep their states.
            x = {g: x[g].detach() if g in self.frozen else x[g] for g in x}
        if self.embedding_l2 > 0:
            x = {g: l2_penalty(x[g], self.embedding_l2) for g in x}
        if self.covariance_weight > 0 and self.training:
            tasks = [g for g in x if g != SHARED]
            penalized = covariance_penalty([x[g] for g in tasks], x[SHARED], self.covariance_weight)
            x = {g: penalized[i] for i, g in enumerate([*tasks, SHARED])}
        if self.shared_output is not None:
            # Above the penalties, which are not a task's.
            x = {**x, SHARED: self.shared_output(x[SHARED])}
        x = self.inputs(x)
        if self.dense_arch:
            x = {g: torch.cat([x[g], self.dense_arch[g](dense_features)], dim=1) for g in x}
        x = self.arch({g: self.embedding_dropout(x[g]) for g in x})
        towers = [self.towers[task](x[task]) for task in self.towers]
        further = [self.further_towers[task](x[task]) for task in self.further_towers]
        return self.logits(torch.cat([*towers, *further], dim=1))

    def logits(self, towers: Tensor) -> Tensor:
        """The logits (B, T) from the towers' outputs (B, T), which they are unless the tasks depend on each other.

        Behind the towers' outputs stand those of further towers; behind the logits stands what `outputs` declares.
        """
        return towers

    @property
    def outputs(self) -> Outputs:
        """What `forward` puts out, for MultiTaskTrain; logits (B, T) alone unless a subclass declares more."""
        return Outputs(self.tasks, links=typed_links(self.links))


def check_dense(dense_features: Tensor | None, sparse_features: KeyedJaggedTensor, width: int) -> None:
    """Raises UserError unless the dense features are (B, width) for B rows of ids; a model without any takes None."""
    shape = None if dense_features is None else tuple(dense_features.shape)
    if (width == 0 and (shape is None or shape[1:] == (0,))) or shape == (sparse_features.stride(), width):
        return
    raise UserError(
        f"the dense features of the batch are {'None' if shape is None else f'of shape {shape}'}, but a model with "
        f"dense_in_features={width} needs {(sparse_features.stride(), width)} for these ids."
    )


def check_links(links: Iterable[str], tasks: Sequence[str]) -> None:
    """Raises UserError for a link of something that is no task."""
    for name in links:
        if name not in tasks:
            raise UserError(f"links has {name!r}, but the tasks are {', '.join(tasks)}{nearest(name, tasks) or '.'}")


def at_least_one(**sizes: int) -> None:
    """Raises UserError for the first of a model's sizes that is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"the model's {name} is {size}, but must be at least 1.")
