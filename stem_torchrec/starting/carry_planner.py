"""Reads parts of saved tensors into other places of other tensors, each saved shard once on each rank.

A `Copy` fills a piece of a tensor of this rank. For each axis it knows which position of the saved tensor each position
of the piece continues:

    saved    embedding_bags.like/uid.weight   rows 0 to 100, in the shards 0 to 50 and 50 to 100
    piece    rows 60 to 120 of the model's    its rows 0 to 40 continue the rows 60 to 100 of the second shard
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem


@dataclass(frozen=True)
class Run:
    """Positions in a row that continue positions in a row."""

    to: int
    """The first position of the piece."""
    start: int
    """The position of the saved tensor that it continues."""
    length: int


Continued = Run | Tensor
"""Which position of a saved axis each position of a piece continues: in a row, or int64 with -1 where none."""


def continued(positions: Tensor | None, old_size: int, *, first: int, count: int, start: int = 0) -> Continued:
    """What `count` positions of an axis continue, from the position `first` on.

    Args:
        positions: the old position of each position of the whole axis, or -1; None if i continues i.
        old_size: positions of the old axis.
        first: of the positions asked for.
        count: of them.
        start: the position of the saved tensor at which the old axis begins.
    """
    if positions is None:
        return Run(0, start + first, max(0, min(count, old_size - first)))
    own = positions[first : first + count]
    return own if start == 0 else torch.where(own < 0, own, own + start)


@dataclass(frozen=True)
class Copy:
    """Fills a piece of a tensor from a saved one; what continues nothing is left as it is."""

    piece: Tensor
    """On this rank."""
    saved: str
    """Name of the saved tensor. It may have more axes than the piece, of size 1."""
    axes: tuple[Continued, ...]
    """For each axis of the piece."""

    def needs(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, int]] | None:
        """The positions of the saved tensor that it needs of a shard, from first to last + 1, by axis; None if none."""
        spans = []
        for axis, offset, size in zip(self.axes, offsets, sizes, strict=False):
            _, positions = _overlap(axis, offset, size)
            if isinstance(positions, slice):
                span = (positions.start, positions.stop)
            else:
                span = (int(positions.min()), int(positions.max()) + 1) if len(positions) else (0, 0)
            if span[0] >= span[1]:
                return None
            spans.append((offset + span[0], offset + span[1]))
        rest = slice(len(spans), None)
        return spans + [(offset, offset + size) for offset, size in zip(offsets[rest], sizes[rest], strict=True)]

    def take(self, block: Tensor, offsets: Sequence[int]) -> None:
        """Copies what it needs of a block of the saved tensor.

        Args:
            block: on the CPU.
            offsets: the position of its first element.
        """
        block = block.view(block.shape[: len(self.axes)])
        pairs = [
            _overlap(axis, offset, size) for axis, offset, size in zip(self.axes, offsets, block.shape, strict=False)
        ]
        to, positions = _outer([a for a, _ in pairs]), _outer([b for _, b in pairs])
        self.piece[to] = block[positions].to(self.piece.device, self.piece.dtype)


Index = slice | Tensor


def _overlap(axis: Continued, offset: int, size: int) -> tuple[Index, Index]:
    """The positions of a piece that continue positions of a block, and these within the block."""
    if isinstance(axis, Run):
        low = max(axis.start, offset)
        high = max(low, min(axis.start + axis.length, offset + size))
        to = axis.to + low - axis.start
        return slice(to, to + high - low), slice(low - offset, high - offset)
    to_positions = ((axis >= offset) & (axis < offset + size)).nonzero().flatten()
    return to_positions, axis[to_positions] - offset


def _outer(indexes: Sequence[Index]) -> tuple[Index, ...]:
    """An index of all combinations; several tensors alone would be taken pair by pair."""
    if sum(isinstance(index, Tensor) for index in indexes) < 2:
        return tuple(indexes)
    flat = [i if isinstance(i, Tensor) else torch.arange(i.start, i.stop) for i in indexes]
    return torch.meshgrid(*flat, indexing="ij")


class CarryLoadPlanner(DefaultLoadPlanner):
    """Makes torch.distributed.checkpoint fill the pieces of this rank.

    A rank reads the saved shards that it needs a part of, one at a time in memory, once for all pieces.

    Args:
        copies: of this rank.

    Example::

        load_state({}, folder, planner=CarryLoadPlanner([Copy(piece, "model.like/uid.weight", axes)]))
    """

    def __init__(self, copies: Sequence[Copy]) -> None:
        super().__init__()
        self._copies: dict[str, list[Copy]] = defaultdict(list)
        for copy in copies:
            self._copies[copy.saved].append(copy)

    def create_local_plan(self) -> LoadPlan:
        """The reads of this rank: of each saved shard the smallest block that holds what it needs."""
        assert self.metadata is not None
        items = []
        for saved, copies in self._copies.items():
            stored = self.metadata.state_dict_metadata[saved]
            assert isinstance(stored, TensorStorageMetadata)
            for number, shard in enumerate(stored.chunks):
                needs = [need for copy in copies if (need := copy.needs(shard.offsets, shard.sizes)) is not None]
                if needs:
                    low = torch.Size(min(span[0] for span in spans) for spans in zip(*needs, strict=True))
                    high = torch.Size(max(span[1] for span in spans) for spans in zip(*needs, strict=True))
                    items.append(_read(saved, number, shard.offsets, low, high))
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """Memory for the block."""
        assert self.metadata is not None
        stored = self.metadata.state_dict_metadata[read_item.storage_index.fqn]
        assert isinstance(stored, TensorStorageMetadata)
        return torch.empty(read_item.lengths, dtype=stored.properties.dtype)

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Copies the block into the pieces."""
        shard = read_item.storage_index.offset
        assert shard is not None
        offsets = [a + b for a, b in zip(shard, read_item.storage_offsets, strict=True)]
        for copy in self._copies[read_item.storage_index.fqn]:
            copy.take(tensor, offsets)


def _read(saved: str, number: int, shard: torch.Size, low: torch.Size, high: torch.Size) -> ReadItem:
    index = MetadataIndex(saved, shard, number)
    return ReadItem(
        type=LoadItemType.TENSOR,
        dest_index=index,
        dest_offsets=torch.Size([0] * len(shard)),
        storage_index=index,
        storage_offsets=torch.Size(a - b for a, b in zip(low, shard, strict=True)),
        lengths=torch.Size(b - a for a, b in zip(low, high, strict=True)),
    )


def fill_new(weight: Tensor, axes: Sequence[Tensor | None], starts: Sequence[float | None]) -> None:
    """Fills the positions of a weight that continue nothing, where another start than their own is given.

    What is new on an axis without a start stays as it is, as the columns of a new expert.

    Args:
        weight: not sharded.
        axes: the old position of each position, -1 where it is new; None if none is.
        starts: by axis.
    """
    for dim, (positions, start) in enumerate(zip(axes, starts, strict=False)):
        if positions is None or start is None:
            continue
        index: list[Index] = [slice(0, size) for size in weight.shape]
        for other, (of_other, start_of_other) in enumerate(zip(axes, starts, strict=True)):
            if of_other is not None and start_of_other is None:
                index[other] = (of_other >= 0).nonzero().flatten()
        index[dim] = (positions < 0).nonzero().flatten()
        weight[_outer(index)] = start
