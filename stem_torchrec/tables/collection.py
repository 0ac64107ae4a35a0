"""The tables of all groups and features in one EmbeddingBagCollection, and their lookup."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from stem_torchrec.config import Layout
from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables.checks import check_features, check_groups, check_ids
from stem_torchrec.tables.choice import ALL_TABLES, TableChoice, check_choice
from stem_torchrec.tables.names import split_columns, table_group, table_groups, table_name
from stem_torchrec.tables.pooling import mean_tables, sums_to_means, with_sums


def embedding_bag_configs(
    features: Sequence[SparseFeature],
    groups: Sequence[str],
    *,
    embedding_dim: int = 16,
    std: float = 1e-4,
    layout: Layout = "split",
    table_choice: TableChoice = ALL_TABLES,
) -> list[EmbeddingBagConfig]:
    """The tables of every group and feature: split, or packed into one for each feature.

    A packed table has the groups whose tables of the feature have the same width, so there may be several of a feature.

    Args:
        features: the sparse features.
        groups: the tasks and shared, in the order of a packed table's columns.
        embedding_dim: columns of a group in the tables of a feature that does not say its own number.
        std: tables start from N(0, std).
        layout: split or packed.
        table_choice: which groups have a table of which feature; by default each of all.

    Raises UserError for a feature name that cannot name a table, a width that FBGEMM cannot look up, or a choice that
    does not fit the groups and features.

    Example::

        features = [SparseFeature("uid", 1000), SparseFeature("tags", 50, pooling="mean", embedding_dim=8)]
        configs = embedding_bag_configs(features, ["like", "shared"], layout="packed")
        [(config.name, config.embedding_dim) for config in configs]
        # [("like+shared/uid", 32), ("like+shared/tags", 16)]
    """
    for feature in features:
        dim = embedding_dim if feature.embedding_dim is None else feature.embedding_dim
        if dim < 4 or dim % 4:
            of_feature = "" if feature.embedding_dim is None else f" of {feature.name!r}"
            raise UserError(f"the embedding dimension{of_feature} is {dim}, but must be a multiple of 4.")
        if "." in feature.name or "@" in feature.name:
            raise UserError(
                f"a sparse feature cannot be called {feature.name!r}, as its tables are called so; in schema.json, "
                "give it another name and the field column, which names the column of the files."
            )
    if table_choice != ALL_TABLES:
        check_choice(table_choice, groups, [feature.name for feature in features])

    def tables(groups: Sequence[str]) -> Iterator[EmbeddingBagConfig]:
        for feature in features:
            side_by_side: dict[int, list[str]] = {}
            for group in groups:
                width = table_choice.width(group, feature.name, feature.embedding_dim or embedding_dim)
                side_by_side.setdefault(width, []).append(group)
            for width, of_width in side_by_side.items():
                if width:
                    yield EmbeddingBagConfig(
                        name=table_name("+".join(of_width), feature.name),
                        num_embeddings=feature.num_embeddings,
                        embedding_dim=width * len(of_width),
                        feature_names=[feature.name],
                        pooling=PoolingType.MEAN if feature.pooling == "mean" else PoolingType.SUM,
                        init_fn=partial(nn.init.normal_, std=std),
                    )

    of_tables = table_choice.groups_of_tables(groups)
    if layout == "packed":
        return list(tables(of_tables))
    return [table for group in of_tables for table in tables([group])]


def build_collection(
    features: Sequence[SparseFeature],
    groups: Sequence[str],
    *,
    embedding_dim: int = 16,
    std: float = 1e-4,
    layout: Layout = "split",
    table_choice: TableChoice = ALL_TABLES,
    device: str = "cpu",
) -> EmbeddingBagCollection:
    """The collection of the tables of `embedding_bag_configs`; it reads weights if one of the features has them."""
    tables = embedding_bag_configs(
        features, groups, embedding_dim=embedding_dim, std=std, layout=layout, table_choice=table_choice
    )
    weighted = any(feature.weights is not None for feature in features)
    return EmbeddingBagCollection(tables=tables, is_weighted=weighted, device=torch.device(device))


class SparseArch(nn.Module):
    """Looks up every feature for all groups: for each task, and for the shared one.

    B is the batch size, F the number of features and D the embedding dimension; features may differ in D. If a table
    pools by the mean, its collection adds up and this module divides the sums: see pooling.py.

    Args:
        embedding_bag_collection: the tables of all groups in any layout, named as `embedding_bag_configs` names them.
        groups: the groups to return.

    Raises UserError for a group without tables, a table whose columns do not divide among the groups in its name, and
    for a batch that lacks a feature, or has weights if and only if the collection is not weighted. Before sharding it
    also names an id outside a table, on CPU; a sharded lookup reads row 0 for it and logs an error, as FBGEMM does.

    Example::

        #          i = 0    i = 1
        # "uid"    [3]      [7]
        # "tags"   [1, 4]   []
        sparse_arch(features)["shared"].shape  # (2, 2 * D)
    """

    def __init__(self, embedding_bag_collection: EmbeddingBagCollection, groups: Sequence[str]) -> None:
        super().__init__()
        self.embedding_bag_collection = with_sums(embedding_bag_collection)
        self.groups = tuple(groups)
        self.cuts: dict[str, list[str]] = {}
        self.columns: dict[str, list[tuple[str, int]]] = {group: [] for group in groups}
        """For each group, its features and their widths, in the order of its columns."""
        self.num_embeddings: dict[str, int] = {}
        """Rows of each feature's smallest table."""
        self.is_weighted = embedding_bag_collection.is_weighted()
        keys: dict[str, list[str]] = {group: [] for group in groups}
        divisors: dict[str, list[tuple[str | None, int]]] = {group: [] for group in groups}
        configs = embedding_bag_collection.embedding_bag_configs()
        check_groups(groups, list(dict.fromkeys(group for config in configs for group in table_groups(config.name))))
        means = mean_tables(configs)
        for config, names in zip(configs, get_embedding_names_by_table(configs), strict=True):
            tables = split_columns(config.name, config.embedding_dim)
            self.cuts |= {name: [f"{table}:{name}" for table in tables] for name in names}
            for feature in config.feature_names:
                rows = self.num_embeddings.get(feature, config.num_embeddings)
                self.num_embeddings[feature] = min(rows, config.num_embeddings)
            for table, columns_of_group in tables.items():
                group = table_group(table)
                if group in keys:
                    keys[group] += [f"{table}:{name}" for name in names]
                    self.columns[group] += [(feature, len(columns_of_group)) for feature in config.feature_names]
                    divide_by = config.feature_names if config.name in means else [None] * len(names)
                    divisors[group] += [(feature, len(columns_of_group)) for feature in divide_by]
        self.keys = list(keys.values())
        self.out_features = {group: sum(width for _, width in self.columns[group]) for group in groups}
        self.means = {g: runs for g, runs in divisors.items() if any(feature is not None for feature, _ in runs)}
        """For each group that has means, the feature to divide by of each run of columns, and its width."""

    def forward(self, features: KeyedJaggedTensor) -> dict[str, Tensor]:
        check_features(features, self.num_embeddings, self.is_weighted)
        try:
            pooled = cut_columns(self.embedding_bag_collection(features), self.cuts)
        except IndexError:
            # Before sharding, TorchRec cannot look up a batch without rows.
            pooled = cut_columns(look_up_no_rows(self.embedding_bag_collection, features), self.cuts)
        except RuntimeError:
            check_ids(features, self.num_embeddings)
            raise
        by_group = KeyedTensor.regroup([pooled], self.keys)
        x = {group: by_group[i] for i, group in enumerate(self.groups)}
        return x | {group: sums_to_means(x[group], features, columns) for group, columns in self.means.items()}


def cut_columns(pooled: KeyedTensor, cuts: dict[str, list[str]]) -> KeyedTensor:
    """The same values under more keys: the columns of each key are cut into equal parts, whose keys `cuts` lists."""
    keys, lengths = [], []
    for key, length in zip(pooled.keys(), pooled.length_per_key(), strict=True):
        keys += cuts[key]
        lengths += [length // len(cuts[key])] * len(cuts[key])
    return KeyedTensor(keys, lengths, pooled.values())


def look_up_no_rows(collection: EmbeddingBagCollection, features: KeyedJaggedTensor) -> KeyedTensor:
    """The embeddings of a batch of 0 rows; raises IndexError for a batch that has rows."""
    if features.stride() > 0:
        raise IndexError("the batch has rows")
    keys, weights = features.keys(), features.weights_or_none()
    row = KeyedJaggedTensor(keys, features.values(), weights, lengths=features.lengths().new_zeros(len(keys)))
    pooled = collection(row)
    return KeyedTensor(pooled.keys(), pooled.length_per_key(), pooled.values()[:0])


# The pipeline traces a model with FX, which cannot follow a loop over keys: to FX each of these is one step.
torch.fx.wrap("check_features")
torch.fx.wrap("cut_columns")
torch.fx.wrap("sums_to_means")
