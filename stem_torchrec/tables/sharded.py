"""The sharded tables of a model: its collections, and the parts of tables that this rank holds."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.runtime.internals.pytorch import ShardedTensor


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
