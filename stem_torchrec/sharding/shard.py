"""Shards the tables of any module by a plan, and fills this rank's parts of them."""

import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.runtime.internals.torchrec_hooks import configs_of
from stem_torchrec.tables import (
    LocalShard,
    check_means,
    local_shards,
    sharded_collections,
    split_columns,
)

_INIT_ROWS = 4096
"""Rows of a table that one random generator fills."""


class AllTypesSharder(EmbeddingBagCollectionSharder):
    """Offers on CPU the sharding types that TorchRec offers on CUDA, with the row-wise ones among them."""

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedEmbeddingBagCollection:
        """The sharded collection; raises UserError for tables whose mean TorchRec gets wrong."""
        check_means(module, {table: sharding.sharding_type for table, sharding in params.items()})
        return super().shard(module, params, env, device, module_fqn)

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """All seven sharding types, on any device."""
        return super().sharding_types("cuda")


def shard(
    model: nn.Module,
    plan: ShardingPlan,
    *,
    device: torch.device,
    seed: int,
    sharder: EmbeddingBagCollectionSharder | None = None,
) -> DistributedModelParallel:
    """Shards the tables of `model` by `plan`, with the same initial weights for every plan and world size."""
    sharded = DistributedModelParallel(model, device=device, plan=plan, sharders=[sharder or AllTypesSharder()])
    fill_tables(sharded, seed=seed)
    return sharded


def fill_tables(model: nn.Module, *, seed: int) -> None:
    """Gives the tables of a sharded model their initial values, on this rank."""
    for _, module in sharded_collections(model):
        configs = {config.name: config for config in configs_of(module)}
        for piece in local_shards(module):
            _fill(piece, configs[piece.table], seed)


def _fill(piece: LocalShard, config: EmbeddingBagConfig, seed: int) -> None:
    """Fills a shard with its part of a table, whose values are drawn by group and by block of rows.

    So the columns of a group start with the same values in every layout and plan.
    """
    assert config.init_fn is not None
    rows, columns = (piece.row, piece.row + piece.weight.shape[0]), (piece.column, piece.column + piece.weight.shape[1])
    for table, group in split_columns(config.name, config.embedding_dim).items():
        left, right = max(group.start, columns[0]), min(group.stop, columns[1])
        if left >= right:
            continue
        for block in range(rows[0] // _INIT_ROWS, -(-rows[1] // _INIT_ROWS)):
            first, last = block * _INIT_ROWS, min((block + 1) * _INIT_ROWS, config.num_embeddings)
            values = _draw(torch.empty(last - first, len(group)), config.init_fn, f"{seed} {table} {block}")
            low, high = max(first, rows[0]), min(last, rows[1])
            part = values[low - first : high - first, left - group.start : right - group.start]
            piece.weight[low - rows[0] : high - rows[0], left - columns[0] : right - columns[0]].copy_(part)


def _draw(values: Tensor, init_fn: Callable[[Tensor], Any], name: str) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the GPUs as well: dropout would draw the same in each epoch.
        torch.random.default_generator.manual_seed(zlib.crc32(name.encode()))
        init_fn(values)
    return values


def initial_weights(table: EmbeddingBagConfig, *, seed: int) -> Tensor:
    """The values (N, D) that `shard` fills a table of one group with, whatever the plan and the layout."""
    assert table.init_fn is not None
    weights = torch.empty(table.num_embeddings, table.embedding_dim)
    for block, values in enumerate(weights.split(_INIT_ROWS)):
        _draw(values, table.init_fn, f"{seed} {table.name} {block}")
    return weights
