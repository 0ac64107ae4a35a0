"""Loads weights and optimizer states that were saved in one layout into the other, bit for bit.

The name of a table lists the groups whose columns it holds, so names are enough. A tensor of a table is divided into
the columns of its groups, each under the name that it has in the split layout:

    saved   ...embedding_bags.finish+like/uid.weight     (R, 2 * D)
    parts   ...embedding_bags.finish/uid.weight          its columns 0 to D
            ...embedding_bags.like/uid.weight            its columns D to 2 * D
    model   any tables that hold these parts, in any order, sharded in any way

States of element-wise optimizers (SGD, Adagrad, Adam) divide as the weights do. A row-wise state does not: it is one
number for all columns of a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.default_planner import create_default_local_load_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from stem_torchrec.checkpoints.dropout_names import names_with_dropout
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.internals.pytorch import ShardedTensor
from stem_torchrec.tables import TableTensor, split_columns

# PyTorch's names of the state that fused optimizers call momentum1.
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
    """The parts of a tensor by their names in the split layout.

    Raises UserError if the columns of a table do not divide among the groups in its name.

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
    """The sizes of tensors by their names in the split layout."""
    return {name: part.size for tensor, size in sizes.items() for name, part in parts_of(tensor, size).items()}


class LayoutLoadPlanner(DefaultLoadPlanner):
    """Makes torch.distributed.checkpoint read weights and optimizer states that were saved in any layout and plan.

    A rank reads the saved shards that hold a part of its own, one saved shard at a time in memory. A saved shard of a
    packed table is read once for each of the model's tables that it fills.

    Raises UserError while planning if a tensor was not saved, or was saved in another size.

    Example::

        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        dcp.load(state, checkpoint_id=folder, planner=LayoutLoadPlanner())
    """

    def create_local_plan(self) -> LoadPlan:
        """The reads of this rank: from which saved shard, to which of its own."""
        assert self.metadata is not None
        saved = self.metadata.state_dict_metadata
        sizes = {name: tuple(item.size) for name, item in saved.items() if isinstance(item, TensorStorageMetadata)}
        parts = {name: part for tensor, size in sizes.items() for name, part in parts_of(tensor, size).items()}
        renamed = names_with_dropout(sizes, self.state_dict)
        unchanged: dict[str, Any] = {}
        items: list[ReadItem] = []
        for name, value in self.state_dict.items():
            if name in renamed:
                stored, whole = saved[renamed[name]], Part(name, tuple(value.size()))
                assert isinstance(stored, TensorStorageMetadata)
                old = _check_size(name, whole, Part(renamed[name], tuple(stored.size)))
                items += read_items(whole, _chunks(value), old, stored.chunks)
                continue
            if not isinstance(value, Tensor) or sizes.get(name) == tuple(value.size()):
                unchanged[name] = value
                continue
            for of_group, target in parts_of(name, value.size()).items():
                source = parts.get(of_group)
                if source is None and self._needs_no_count(name):
                    continue
                source = _check_part(of_group, target, source)
                stored = saved[source.tensor]
                assert isinstance(stored, TensorStorageMetadata)
                items += read_items(target, _chunks(value), source, stored.chunks)
        return LoadPlan([*create_default_local_load_plan(unchanged, self.metadata).items, *items])

    def _needs_no_count(self, name: str) -> bool:
        """Whether a count of steps may be missing: a fused optimizer does not save it, and Adagrad does not use it."""
        return name.endswith(".step") and f"{name.removesuffix('step')}sum" in self.state_dict


def _check_part(name: str, target: Part, source: Part | None) -> Part:
    """Returns the saved part; raises UserError if it is missing or does not fit."""
    if source is None:
        raise UserError(f"{name} was not saved; it is {target.size} here.")
    if len(target.size) != len(source.size) or (len(target.size) == 1 and target.tensor != source.tensor):
        raise UserError(
            f"{name} was saved as {source.size} and is {target.size} here: a row-wise optimizer state is one number "
            "for all columns of a row, and is read only under the layout, the kind of plan and the optimizer that "
            "wrote it."
        )
    return _check_size(name, target, source)


def _check_size(name: str, target: Part, source: Part) -> Part:
    if target.size != source.size:
        raise UserError(f"{name} was saved as {source.size}, but is {target.size} here.")
    return source


def _chunks(value: Tensor) -> list[ChunkStorageMetadata]:
    """The parts of a tensor that are on this rank."""
    if isinstance(value, ShardedTensor):
        shards = [shard.metadata for shard in value.local_shards()]
        return [ChunkStorageMetadata(torch.Size(s.shard_offsets), torch.Size(s.shard_sizes)) for s in shards]
    return [ChunkStorageMetadata(torch.Size([0] * value.dim()), value.size())]


def read_items(
    target: Part, chunks: Sequence[ChunkStorageMetadata], source: Part, stored: Sequence[ChunkStorageMetadata]
) -> Iterator[ReadItem]:
    """Reads of a part, one for each pair of this rank's chunks and the stored ones that overlap within the part."""
    for i, chunk in enumerate(chunks):
        for j, stored_chunk in enumerate(stored):
            spans = []
            for dim, size in enumerate(target.size):
                last = dim == len(target.size) - 1
                # Both count from the part's first row and column.
                low_target = chunk.offsets[dim] - (target.start if last else 0)
                low_source = stored_chunk.offsets[dim] - (source.start if last else 0)
                low = max(0, low_target, low_source)
                high = min(size, low_target + chunk.sizes[dim], low_source + stored_chunk.sizes[dim])
                spans.append((low - low_target, low - low_source, high - low))
            if all(length > 0 for _, _, length in spans):
                yield ReadItem(
                    type=LoadItemType.TENSOR,
                    dest_index=MetadataIndex(target.tensor, chunk.offsets, i),
                    dest_offsets=torch.Size(to for to, _, _ in spans),
                    storage_index=MetadataIndex(source.tensor, stored_chunk.offsets, j),
                    storage_offsets=torch.Size(start for _, start, _ in spans),
                    lengths=torch.Size(length for _, _, length in spans),
                )
