"""The tables of all groups and features in one EmbeddingBagCollection, and their lookup."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from stem_torchrec.config import Layout
from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables.names import split_columns, table_group, table_name


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
