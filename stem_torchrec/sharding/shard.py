"""Sharding the tables of any module by a plan, and what each rank then holds."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.tables import split_columns

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


def sharded_collections(model: nn.Module) -> Iterator[tuple[str, ShardedEmbeddingBagCollection]]:
    """The sharded collections in `model`, by name."""
    for name, module in model.named_modules():
        if isinstance(module, ShardedEmbeddingBagCollection):
            yield name, module


@dataclass(frozen=True)
class LocalShard:
    """The part of a table that this rank holds."""

    table: str
    weight: Tensor
    row: int
    """Row of the table that the shard starts with."""
    column: int
    """Column of the table that the shard starts with."""


def local_shards(module: ShardedEmbeddingBagCollection) -> Iterator[LocalShard]:
    """This rank's parts of the tables of a sharded collection; data_parallel tables are whole."""
    for key, weight in module.state_dict().items():
        table = key.removeprefix("embedding_bags.").removesuffix(".weight")
        if isinstance(weight, ShardedTensor):
            for piece in weight.local_shards():
                row, column = piece.metadata.shard_offsets
                yield LocalShard(table, piece.tensor, row, column)
        else:
            yield LocalShard(table, weight, 0, 0)


def table_configs(model: nn.Module) -> list[EmbeddingBagConfig]:
    """The tables of all EmbeddingBagCollections in `model`."""
    collections = (module for module in model.modules() if isinstance(module, EmbeddingBagCollection))
    return [config for collection in collections for config in collection.embedding_bag_configs()]


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
