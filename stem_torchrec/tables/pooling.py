"""The mean of a bag: tables sum up the embeddings of a row's ids, and the sum is divided here, by the bag's length.

    pooling   without weights       with weights
    sum       sum of e_i            sum of w_i * e_i
    mean      (sum of e_i) / n      (sum of w_i * e_i) / n       n ids; a bag without ids is 0

TorchRec divides in the lookup or behind it, depending on the sharding type. In its version 1.8 the results differ:
grid_shard divides by the wrong lengths, and the types that cut rows divide weighted ids by the sum of their weights,
the others by their number. The number of ids does not depend on the sharding, nor does a division by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.runtime.errors import UserError

ROW_TYPES = ("row_wise", "table_row_wise", "grid_shard")
"""The sharding types that cut a table by rows."""


def with_sums(collection: EmbeddingBagCollection) -> EmbeddingBagCollection:
    """A collection of the same weights in which every table pools by the sum; `collection` if all do already."""
    configs = collection.embedding_bag_configs()
    if not mean_tables(configs):
        return collection
    sums = EmbeddingBagCollection(
        tables=[replace(config, pooling=PoolingType.SUM) for config in configs],
        is_weighted=collection.is_weighted(),
        device=torch.device("meta"),
    )
    for table, bag in collection.embedding_bags.items():
        sums.embedding_bags[table].weight = bag.weight
    return sums


def mean_tables(configs: Sequence[EmbeddingBagConfig]) -> list[str]:
    """The names of the tables that pool by the mean."""
    return [config.name for config in configs if config.pooling == PoolingType.MEAN]


def sums_to_means(sums: Tensor, features: KeyedJaggedTensor, columns: Sequence[tuple[str | None, int]]) -> Tensor:
    """Divides the columns of some features by the number of ids of these features.

    Args:
        sums: pooled embeddings (B, W).
        features: the ids of the B rows.
        columns: for each run of columns, the feature to divide by, or None to leave them as they are, and its width.

    Raises ValueError if the features differ in their batch sizes.

    Example::

        #         i = 0     i = 1
        # "tags"  [1, 4]    []
        sums_to_means(torch.tensor([[6.0, 8.0, 5.0], [0.0, 0.0, 5.0]]), features, [("tags", 2), (None, 1)])
        # [[3.0, 4.0, 5.0], [0.0, 0.0, 5.0]]
    """
    if features.variable_stride_per_key():
        raise ValueError(
            "features of different batch sizes cannot be pooled by the mean; give all the same batch size."
        )
    keys = features.keys()
    lengths = features.lengths().view(len(keys), features.stride()).clamp(min=1)
    ones = torch.ones_like(lengths[0])
    divisors = [ones if feature is None else lengths[keys.index(feature)] for feature, _ in columns]
    widths = [width for _, width in columns]
    return sums / torch.cat([d[:, None].expand(-1, w) for d, w in zip(divisors, widths, strict=True)], dim=1)


def wrong_mean_types(is_weighted: bool) -> tuple[str, ...]:
    """The sharding types under which TorchRec 1.8 pools by another mean than the one that is defined above."""
    return ROW_TYPES if is_weighted else ("grid_shard",)


def check_plan(model: nn.Module, plan: ShardingPlan) -> None:
    """Raises UserError for tables whose mean TorchRec gets wrong under the plan, which its own sharder does not check.

    Args:
        model: before it is sharded.
        plan: as TorchRec's planner makes it for `model`.
    """
    for path, params in plan.plan.items():
        module = model.get_submodule(path)
        if isinstance(module, EmbeddingBagCollection):
            check_means(module, {table: sharding.sharding_type for table, sharding in params.items()})


def check_means(collection: EmbeddingBagCollection, sharding_types: Mapping[str, str]) -> None:
    """Raises UserError for tables that TorchRec would pool by a wrong mean.

    Args:
        collection: the tables, before they are sharded.
        sharding_types: by table.
    """
    wrong = wrong_mean_types(collection.is_weighted())
    for table in mean_tables(collection.embedding_bag_configs()):
        if sharding_types.get(table) in wrong:
            raise UserError(
                f"the table {table!r} pools {'weighted ids ' if collection.is_weighted() else ''}by the mean, which "
                f"TorchRec gets wrong under {sharding_types[table]}; choose another sharding type, or let "
                "stem_torchrec.tables.SparseArch look it up, which divides by itself."
            )
