"""Weights and optimizer states from one layout to the other, while torch.distributed.checkpoint reads them, to the bit.

A table's name says whose columns it holds, so names are all this needs. A tensor of a table is taken for the columns of
its groups, each under the name that the split layout has for it:

    saved   ...embedding_bags.finish+like/uid.weight     (R, 2 * D)
    parts   ...embedding_bags.finish/uid.weight          its columns 0 to D
            ...embedding_bags.like/uid.weight            its columns D to 2 * D
    here    any tables that hold these parts, in any order, sharded in any way

States of element-wise optimizers (SGD, Adagrad, Adam) divide as the weights do. A row-wise state does not: it is one
number for all columns of a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import TableTensor, split_columns

# What PyTorch calls the state that the fused optimizers call momentum1.
_FUSED_STATES = {"sum": "momentum1", "exp_avg": "momentum1"}


@dataclass(frozen=True)
class Part:
    """The part of a tensor that belongs to one group: all of it, or a block of its columns."""

    tensor: str
    """Name of the tensor."""
    size: tuple[int, ...]
    """Size of the part."""
    start: int = 0
    """The tensor's column that it starts with."""


def parts_of(name: str, size: Sequence[int]) -> dict[str, Part]:
    """The parts of a tensor, by the names that they have in the split layout.

    Raises UserError for a table whose columns do not divide among the groups in its name.

    Example::

        parts_of("embedding_bags.finish+like/uid.weight", (100, 32))
        # {"embedding_bags.finish/uid.weight": Part("embedding_bags.finish+like/uid.weight", (100, 16), 0),
        #  "embedding_bags.like/uid.weight": Part("embedding_bags.finish+like/uid.weight", (100, 16), 16)}
    """
    tensor = TableTensor.parse(name)
    if tensor is None:
        return {name: Part(name, tuple(size))}
    if tensor.state is not None:
        tensor = replace(tensor, state=_FUSED_STATES.get(tensor.state, tensor.state))
    if len(size) == 2:
        return {
            replace(tensor, table=table).name: Part(name, (size[0], len(columns)), columns.start)
            for table, columns in split_columns(tensor.table, size[1]).items()
        }
    # Counts of steps and row-wise states: the same for all groups.
    return {replace(tensor, table=table).name: Part(name, tuple(size)) for table in split_columns(tensor.table, 0)}


def split_sizes(sizes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The sizes of tensors by name, as the split layout has them."""
    return {name: part.size for tensor, size in sizes.items() for name, part in parts_of(tensor, size).items()}


class LayoutLoadPlanner(DefaultLoadPlanner):
    """Lets torch.distributed.checkpoint read weights and optimizer states that were saved in any layout and plan.

    A rank reads, saved shard by saved shard, those that hold a part of its own shards: beside them it holds one saved
    shard at a time. A saved shard of a packed table is read once for each table here that it fills.

    Raises UserError while planning for a tensor that was not saved, or in another size.

    Example::

        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        dcp.load(state, checkpoint_id=folder, planner=LayoutLoadPlanner())
    """

    def create_local_plan(self) -> LoadPlan:
        """What this rank reads, and where to."""
        assert self.metadata is not None
        saved = self.metadata.state_dict_metadata
        sizes = {name: tuple(item.size) for name, item in saved.items() if isinstance(item, TensorStorageMetadata)}
        parts = {name: part for tensor, size in sizes.items() for name, part in parts_of(tensor, size).items()}
        alike: dict[str, Any] = {}
        items: list[ReadItem] = []
        for name, value in self.state_dict.items():
            if not isinstance(value, Tensor) or sizes.get(name) == tuple(value.size()):
                alike[name] = value
                continue
            for of_group, here in parts_of(name, value.size()).items():
                there = parts.get(of_group)
                if there is None and self._needs_no_count(name):
                    continue
                there = _check_part(of_group, here, there)
                stored = saved[there.tensor]
                assert isinstance(stored, TensorStorageMetadata)
                items += _read_items(here, _chunks(value), there, stored.chunks)
        return LoadPlan([*create_default_local_load_plan(alike, self.metadata).items, *items])

    def _needs_no_count(self, name: str) -> bool:
        """Whether a count of steps may be missing: a fused optimizer saves none, and Adagrad does not use its own."""
        return name.endswith(".step") and f"{name.removesuffix('step')}sum" in self.state_dict


def _check_part(name: str, here: Part, there: Part | None) -> Part:
    if there is None:
        raise UserError(f"{name} was not saved; it is {here.size} here.")
    if len(here.size) != len(there.size) or (len(here.size) == 1 and here.tensor != there.tensor):
        raise UserError(
            f"{name} was saved as {there.size} and is {here.size} here: a row-wise optimizer state is one number for "
            "all columns of a row, and is read only under the layout, the kind of plan and the optimizer that wrote it."
        )
    if here.size != there.size:
        raise UserError(f"{name} was saved as {there.size}, but is {here.size} here.")
    return there


def _chunks(value: Tensor) -> list[ChunkStorageMetadata]:
    """What this rank holds of a tensor."""
    if isinstance(value, ShardedTensor):
        shards = [shard.metadata for shard in value.local_shards()]
        return [ChunkStorageMetadata(torch.Size(s.shard_offsets), torch.Size(s.shard_sizes)) for s in shards]
    return [ChunkStorageMetadata(torch.Size([0] * value.dim()), value.size())]


def _read_items(
    here: Part, chunks: Sequence[ChunkStorageMetadata], there: Part, stored: Sequence[ChunkStorageMetadata]
) -> Iterator[ReadItem]:
    """Reads of a part, one for each pair of a chunk here and a stored one that overlap within the part."""
    for i, chunk in enumerate(chunks):
        for j, source in enumerate(stored):
            spans = []
            for dim, size in enumerate(here.size):
                last = dim == len(here.size) - 1
                # Both count from the part's first row and column.
                low_here = chunk.offsets[dim] - (here.start if last else 0)
                low_there = source.offsets[dim] - (there.start if last else 0)
                low = max(0, low_here, low_there)
                high = min(size, low_here + chunk.sizes[dim], low_there + source.sizes[dim])
                spans.append((low - low_here, low - low_there, high - low))
            if all(length > 0 for _, _, length in spans):
                yield ReadItem(
                    type=LoadItemType.TENSOR,
                    dest_index=MetadataIndex(here.tensor, chunk.offsets, i),
                    dest_offsets=torch.Size(to for to, _, _ in spans),
                    storage_index=MetadataIndex(there.tensor, source.offsets, j),
                    storage_offsets=torch.Size(start for _, start, _ in spans),
                    lengths=torch.Size(length for _, _, length in spans),
                )
