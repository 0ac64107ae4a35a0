"""Sharding the tables of any module by a plan, and what each rank then holds."""

import zlib

import torch
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from stem_torchrec.tables import LocalShard, local_shards, sharded_collections, split_columns, table_configs

_INIT_ROWS = 4096
"""Rows of a table that one random generator fills."""


class AllTypesSharder(EmbeddingBagCollectionSharder):
    """Offers on CPU the sharding types that TorchRec offers on CUDA, with the row-wise ones among them."""

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
    configs = {config.name: config for config in table_configs(model)}
    sharded = DistributedModelParallel(model, device=device, plan=plan, sharders=[sharder or AllTypesSharder()])
    for _, module in sharded_collections(sharded):
        for piece in local_shards(module):
            _fill(piece, configs[piece.table], seed)
    return sharded


def _fill(piece: LocalShard, config: EmbeddingBagConfig, seed: int) -> None:
    """Fills a shard with its part of a table, which is drawn by groups and blocks of rows, whoever holds them.

    So a group's columns start the same in every layout and plan.
    """
    assert config.init_fn is not None
    rows, columns = (piece.row, piece.row + piece.weight.shape[0]), (piece.column, piece.column + piece.weight.shape[1])
    for table, held in split_columns(config.name, config.embedding_dim).items():
        left, right = max(held.start, columns[0]), min(held.stop, columns[1])
        if left >= right:
            continue
        for block in range(rows[0] // _INIT_ROWS, -(-rows[1] // _INIT_ROWS)):
            first, last = block * _INIT_ROWS, min((block + 1) * _INIT_ROWS, config.num_embeddings)
            values = torch.empty(last - first, len(held))
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(zlib.crc32(f"{seed} {table} {block}".encode()))
                config.init_fn(values)
            low, high = max(first, rows[0]), min(last, rows[1])
            part = values[low - first : high - first, left - held.start : right - held.start]
            piece.weight[low - rows[0] : high - rows[0], left - columns[0] : right - columns[0]].copy_(part)
