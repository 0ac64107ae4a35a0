"""The tables: one for each group (every task, and shared) and feature, in one EmbeddingBagCollection."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.errors import UserError

SHARED = "shared"
"""The group whose tables and experts every task reads and trains."""


def groups_of(tasks: Sequence[str]) -> tuple[str, ...]:
    """The tasks, then the shared group; raises UserError for a task name that cannot name a group."""
    for task in tasks:
        # Groups name submodules, and a module dictionary keeps its own attributes' names for itself.
        if task in ("", SHARED) or "." in task or "/" in task or hasattr(nn.ModuleDict(), task):
            raise UserError(f"a task cannot be called {task!r}; rename the label column.")
    if not tasks or len(set(tasks)) < len(tasks):
        raise UserError(f"the tasks must be one or more different labels, not {list(tasks)}.")
    return (*tasks, SHARED)


def table_name(group: str, feature: str) -> str:
    """`group/feature`, as plans, rules and weights name the table."""
    return f"{group}/{feature}"


def table_group(table: str) -> str:
    """The group of a table that `table_name` named."""
    return table.partition("/")[0]


def embedding_bag_configs(
    features: Sequence[SparseFeature], groups: Sequence[str], *, embedding_dim: int = 16, std: float = 1e-4
) -> list[EmbeddingBagConfig]:
    """The split layout: a table of `embedding_dim` columns for every group and feature, sum pooled.

    Tables start from N(0, std). Raises UserError for a feature name that cannot name a table, or a width that
    FBGEMM cannot look up.
    """
    if embedding_dim < 4 or embedding_dim % 4:
        raise UserError(f"the embedding dimension is {embedding_dim}, but must be a multiple of 4.")
    for feature in features:
        if "." in feature.name or "@" in feature.name:
            raise UserError(f"a sparse feature cannot be called {feature.name!r}; rename the column.")
    return [
        EmbeddingBagConfig(
            name=table_name(group, feature.name),
            num_embeddings=feature.num_embeddings,
            embedding_dim=embedding_dim,
            feature_names=[feature.name],
            init_fn=partial(nn.init.normal_, std=std),
        )
        for group in groups
        for feature in features
    ]


class SparseArch(nn.Module):
    """Looks up every feature once per group: once for each task and once for the shared tables.

    B is the batch size, F the number of features and D the embedding dimension.

    Args:
        embedding_bag_collection: the tables of all groups, named `group/feature`.
        groups: the groups to return.

    Example::

        #          i = 0    i = 1
        # "uid"    [3]      [7]
        # "tags"   [1, 4]   []
        sparse_arch(features)["shared"].shape  # (2, 2 * D)
    """

    def __init__(self, embedding_bag_collection: EmbeddingBagCollection, groups: Sequence[str]) -> None:
        super().__init__()
        configs = embedding_bag_collection.embedding_bag_configs()
        keys = get_embedding_names_by_table(configs)
        self.embedding_bag_collection = embedding_bag_collection
        self.groups = tuple(groups)
        self.keys = [
            [
                key
                for config, names in zip(configs, keys, strict=True)
                if table_group(config.name) == group
                for key in names
            ]
            for group in groups
        ]
        self.out_features = {
            group: sum(config.embedding_dim for config in configs if table_group(config.name) == group)
            for group in groups
        }

    def forward(self, features: KeyedJaggedTensor) -> dict[str, Tensor]:
        pooled = KeyedTensor.regroup([self.embedding_bag_collection(features)], self.keys)
        return {group: pooled[i] for i, group in enumerate(self.groups)}
