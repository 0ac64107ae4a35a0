"""The tables in a model: their configurations and weights before sharding, and this rank's parts of them after."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor, nn
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.keyed import CombinedOptimizer

from stem_torchrec.runtime.internals.pytorch import ShardedTensor
from stem_torchrec.runtime.internals.torchrec_hooks import count_steps_from
from stem_torchrec.tables.tensors import table_of

M = TypeVar("M", bound=nn.Module)


def table_configs(model: nn.Module) -> list[EmbeddingBagConfig]:
    """The tables of all EmbeddingBagCollections in `model`."""
    return [config for collection in _collections(model) for config in collection.embedding_bag_configs()]


def table_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of all tables in `model` by the tables' names, before it is sharded."""
    return {table: bag.weight for collection in _collections(model) for table, bag in collection.embedding_bags.items()}


def reads_weights(model: nn.Module) -> bool:
    """Whether a table in `model` reads weights of ids, before it is sharded."""
    return any(collection.is_weighted() for collection in _collections(model))


def with_one_row(model: M) -> M:
    """A copy of a model that is not sharded, with tables of one row, which takes next to no memory."""
    small = {
        id(collection): EmbeddingBagCollection(
            tables=[replace(config, num_embeddings=1) for config in collection.embedding_bag_configs()],
            is_weighted=collection.is_weighted(),
        )
        for collection in _collections(model)
    }
    # The copy takes these for the collections that it has copied already.
    return deepcopy(model, small)


def _collections(model: nn.Module) -> Iterator[EmbeddingBagCollection]:
    return (module for module in model.modules() if isinstance(module, EmbeddingBagCollection))


def sharded_collections(model: nn.Module) -> Iterator[tuple[str, ShardedEmbeddingBagCollection]]:
    """The sharded collections in `model`, by name."""
    for name, module in model.named_modules():
        if isinstance(module, ShardedEmbeddingBagCollection):
            yield name, module


def set_steps(model: nn.Module, optimizer: CombinedOptimizer, steps: int) -> None:
    """Lets the tables' optimizers correct the bias of moments as after `steps` steps, whatever they have looked up.

    FBGEMM counts lookups, those of evaluations as well. Torch's optimizers have a count among their states.
    """
    optimizer.set_optimizer_step(steps)
    for _, collection in sharded_collections(model):
        count_steps_from(collection, steps)


def clear_states(optimizer: CombinedOptimizer, *, of_tables_alone: bool = False) -> None:
    """Sets this rank's states of an optimizer to 0, of all weights or of tables alone."""
    for name, states in optimizer.state_dict()["state"].items():
        if of_tables_alone and table_of(name) is None:
            continue
        for state in states.values():
            for _, piece in local_pieces(state):
                piece.zero_()


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
    """This rank's parts of the tables of a sharded collection; it has data_parallel tables whole."""
    for name, weight in module.state_dict().items():
        table = table_of(name)
        assert table is not None, f"{name} is not a table"
        if isinstance(weight, ShardedTensor):
            for piece in weight.local_shards():
                row, column = piece.metadata.shard_offsets
                yield LocalShard(table, piece.tensor, row, column)
        else:
            yield LocalShard(table, weight, 0, 0)


def local_pieces(weight: Tensor) -> list[tuple[Sequence[int], Tensor]]:
    """The pieces of a weight or state on this rank, each with the position of its first element."""
    if isinstance(weight, ShardedTensor):
        return [(shard.metadata.shard_offsets, shard.tensor) for shard in weight.local_shards()]
    return [([0] * weight.dim(), weight)]


def size_of(weight: Tensor) -> tuple[int, ...]:
    """The size of a whole weight or state."""
    # A ShardedTensor warns when its shape is read directly.
    return tuple(weight.metadata().size if isinstance(weight, ShardedTensor) else weight.shape)
