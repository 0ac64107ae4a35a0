"""Loads row-wise optimizer states into tables whose columns are cut in another way than when they were saved.

A row-wise optimizer keeps one number for a row of each column shard: row-wise Adagrad sums up the mean of g^2 over the
shard's columns. The rule: a shard's number is the mean of the saved numbers over its columns, where each saved number
counts for the columns that it was kept for. So a shard that joins others gets what one shard would have kept for the
same gradients, and each part of a shard that was cut gets that shard's number.

    saved, two shards of a row       columns 0 to 8: 1.0      columns 8 to 16: 3.0
    loaded into one shard            columns 0 to 16: 2.0
    loaded into columns 4 to 16      (4 * 1.0 + 8 * 3.0) / 12
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from stem_torchrec.checkpoints.load_planner import parts_of
from stem_torchrec.checkpoints.storage import State, reader_from
from stem_torchrec.runtime.internals.pytorch import ShardedTensor

Columns = tuple[int, int]


@dataclass(frozen=True)
class RowState:
    """A row-wise state of this model, and where it was saved under another cut of columns."""

    parameter: str
    """Name of the table's weight in the model."""
    value: Tensor
    """Shape (S * R,), sharded, for S column shards of R rows; or (R, 1), not sharded."""
    saved: str
    """The state's name in the checkpoint."""
    saved_size: torch.Size
    saved_columns: Sequence[Columns]
    """First and last column + 1 of each column shard."""


def take_out(state: State, metadata: Metadata) -> list[RowState]:
    """Removes from `state`, and returns, the row-wise states that were saved under another cut of columns.

    Args:
        state: from `training_state`.
        metadata: of the checkpoint.
    """
    saved = {
        name: item for name, item in metadata.state_dict_metadata.items() if isinstance(item, TensorStorageMetadata)
    }
    by_part = {
        part: name
        for name, item in saved.items()
        if name.startswith("optimizer.")
        for part in parts_of(name, item.size)
    }
    taken = []
    for parameter, states in state["optimizer"].items():
        weight = saved.get(f"model.{parameter}")
        if weight is None or len(weight.size) != 2:
            continue
        for name, value in list(states.items()):
            if not isinstance(value, Tensor) or (value.dim() == 2 and value.size(1) > 1) or value.dim() == 0:
                continue
            full = f"optimizer.{parameter}.{name}"
            saved_name = by_part.get(next(iter(parts_of(full, value.size()))))
            if saved_name is None or saved[saved_name].size == value.size():
                continue
            taken.append(RowState(parameter, value, saved_name, saved[saved_name].size, column_shards(weight)))
            del states[name]
            # The count of steps beside it: a fused optimizer does not save it and row-wise Adagrad does not use it.
            if f"optimizer.{parameter}.step" not in by_part:
                states.pop("step", None)
    return taken


def read(rows: Sequence[RowState], state: State, path: str) -> None:
    """Reads from a checkpoint the states that `take_out` returned, one table at a time in memory.

    Args:
        rows: from `take_out`; their values are filled.
        state: from `training_state`, for the cut of columns of this model.
        path: of the checkpoint.
    """
    for row in rows:
        buffer = torch.empty(row.saved_size)
        # Each rank has its own tables, so each reads for itself.
        dcp.load({row.saved: buffer}, storage_reader=reader_from(path), no_dist=True)
        by_shard = buffer.view(len(row.saved_columns), -1)
        for columns, first, target in row_pieces(row.value, state["model"][row.parameter]):
            low, high = columns
            mixed = torch.zeros(target.numel())
            for (start, stop), numbers in zip(row.saved_columns, by_shard, strict=True):
                shared = max(0, min(high, stop) - max(low, start))
                mixed += numbers[first : first + target.numel()] * (shared / (high - low))
            target.copy_(mixed.view_as(target))


def column_shards(weight: TensorStorageMetadata) -> list[Columns]:
    """How the columns of a saved table were cut."""
    return sorted({(shard.offsets[1], shard.offsets[1] + shard.sizes[1]) for shard in weight.chunks})


def row_pieces(value: Tensor, weight: Tensor) -> Iterator[tuple[Columns, int, Tensor]]:
    """This rank's parts of a row-wise state: the columns of each, its first row, and its numbers, one for each row."""
    rows, width = weight.size()
    if not isinstance(value, ShardedTensor):
        yield (0, width), 0, value
        return
    assert isinstance(weight, ShardedTensor)
    shards = weight.metadata().shards_metadata
    columns = sorted({(s.shard_offsets[1], s.shard_offsets[1] + s.shard_sizes[1]) for s in shards})
    for shard in value.local_shards():
        place, first = divmod(shard.metadata.shard_offsets[0], rows)
        yield columns[place], first, shard.tensor
