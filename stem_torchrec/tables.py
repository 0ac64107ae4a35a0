"""The tables, in one EmbeddingBagCollection: one for each group (every task, and shared) and feature, or packed.

A table's name says whose columns it holds, in the order of the columns, so names are all that tells the layouts apart:

    split    finish/uid  like/uid  shared/uid     D columns each
    packed   finish+like+shared/uid               3 * D columns, looked up at once
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.errors import UserError
from stem_torchrec.literals import Layout

SHARED = "shared"
"""The group whose tables and experts every task reads and trains."""


def groups_of(tasks: Sequence[str]) -> tuple[str, ...]:
    """The tasks, then the shared group; raises UserError for a task name that cannot name a group."""
    for task in tasks:
        # Groups name submodules, and a module dictionary keeps its own attributes' names for itself.
        if task in ("", SHARED) or set(task) & set("./+") or hasattr(nn.ModuleDict(), task):
            raise UserError(f"a task cannot be called {task!r}; rename the label column.")
    if not tasks or len(set(tasks)) < len(tasks):
        raise UserError(f"the tasks must be one or more different labels, not {list(tasks)}.")
    return (*tasks, SHARED)


def table_name(group: str, feature: str) -> str:
    """`group/feature`, as plans, rules and weights name the table."""
    return f"{group}/{feature}"


def table_group(table: str) -> str:
    """The group of a table that `table_name` named; of a packed one, its groups as the name has them."""
    return table.partition("/")[0]


def table_groups(table: str) -> tuple[str, ...]:
    """The groups whose columns a table holds side by side, in the order of the columns."""
    return tuple(table_group(table).split("+")) if "/" in table else (table,)


def split_columns(table: str, width: int) -> dict[str, range]:
    """The tables that a table of `width` columns is in the split layout, with their columns in it.

    Raises UserError for a name that does not fit the width.

    Example::

        split_columns("finish+like/uid", 32)  # {"finish/uid": range(0, 16), "like/uid": range(16, 32)}
    """
    groups = table_groups(table)
    if len(groups) == 1:
        return {table: range(width)}
    if width % len(groups) or len(set(groups)) < len(groups):
        raise UserError(
            f"the table {table!r} cannot hold {', '.join(groups)} side by side in {width} columns; each group needs as "
            "many, once."
        )
    feature, dim = table.partition("/")[2], width // len(groups)
    return {table_name(group, feature): range(i * dim, (i + 1) * dim) for i, group in enumerate(groups)}


def embedding_bag_configs(
    features: Sequence[SparseFeature],
    groups: Sequence[str],
    *,
    embedding_dim: int = 16,
    std: float = 1e-4,
    layout: Layout = "split",
) -> list[EmbeddingBagConfig]:
    """The tables of every group and feature, sum pooled: split, or packed into one for each feature.

    Args:
        features: the sparse features.
        groups: the tasks and shared, in the order of a packed table's columns.
        embedding_dim: columns of a group in a table.
        std: tables start from N(0, std).
        layout: split or packed.

    Raises UserError for a feature name that cannot name a table, or a width that FBGEMM cannot look up.
    """
    if embedding_dim < 4 or embedding_dim % 4:
        raise UserError(f"the embedding dimension is {embedding_dim}, but must be a multiple of 4.")
    for feature in features:
        if "." in feature.name or "@" in feature.name:
            raise UserError(f"a sparse feature cannot be called {feature.name!r}; rename the column.")
    return [
        EmbeddingBagConfig(
            name=table_name("+".join(held), feature.name),
            num_embeddings=feature.num_embeddings,
            embedding_dim=embedding_dim * len(held),
            feature_names=[feature.name],
            init_fn=partial(nn.init.normal_, std=std),
        )
        for held in ([groups] if layout == "packed" else [[group] for group in groups])
        for feature in features
    ]


class SparseArch(nn.Module):
    """Looks up every feature for all groups: for each task, and for the shared one.

    B is the batch size, F the number of features and D the embedding dimension.

    Args:
        embedding_bag_collection: the tables of all groups in any layout, named as `embedding_bag_configs` names them.
        groups: the groups to return.

    Raises UserError for a table whose columns do not divide among the groups in its name.

    Example::

        #          i = 0    i = 1
        # "uid"    [3]      [7]
        # "tags"   [1, 4]   []
        sparse_arch(features)["shared"].shape  # (2, 2 * D)
    """

    def __init__(self, embedding_bag_collection: EmbeddingBagCollection, groups: Sequence[str]) -> None:
        super().__init__()
        self.embedding_bag_collection = embedding_bag_collection
        self.groups = tuple(groups)
        self.cuts: dict[str, list[str]] = {}
        keys: dict[str, list[str]] = {group: [] for group in groups}
        self.out_features = dict.fromkeys(groups, 0)
        configs = embedding_bag_collection.embedding_bag_configs()
        for config, names in zip(configs, get_embedding_names_by_table(configs), strict=True):
            tables = split_columns(config.name, config.embedding_dim)
            self.cuts |= {name: [f"{table}:{name}" for table in tables] for name in names}
            for table, columns in tables.items():
                group = table_group(table)
                if group in keys:
                    keys[group] += [f"{table}:{name}" for name in names]
                    self.out_features[group] += len(columns) * len(names)
        self.keys = list(keys.values())

    def forward(self, features: KeyedJaggedTensor) -> dict[str, Tensor]:
        pooled = cut_columns(self.embedding_bag_collection(features), self.cuts)
        by_group = KeyedTensor.regroup([pooled], self.keys)
        return {group: by_group[i] for i, group in enumerate(self.groups)}


def cut_columns(pooled: KeyedTensor, cuts: dict[str, list[str]]) -> KeyedTensor:
    """The same values under more keys: each key's columns are cut into equal parts, called as `cuts` says."""
    keys, lengths = [], []
    for key, length in zip(pooled.keys(), pooled.length_per_key(), strict=True):
        keys += cuts[key]
        lengths += [length // len(cuts[key])] * len(cuts[key])
    return KeyedTensor(keys, lengths, pooled.values())


# The pipeline traces a model with FX, which cannot follow a loop over keys: this is one step to it.
torch.fx.wrap("cut_columns")
