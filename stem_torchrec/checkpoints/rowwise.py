"""Row-wise optimizer states from one way of cutting columns to another.

A row-wise optimizer keeps one number for a row of each column shard: row-wise Adagrad sums up the mean of g^2 over the
shard's columns. The rule: a shard's number is the mean of the saved numbers over its columns, each counting for the
columns that it was kept for. So shards that are joined get what one shard would have kept for the same gradients, and
the parts of one that is cut get its number.
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
    """A row-wise state here, and where it was saved under another cut of columns."""

    parameter: str
    """The table's weight, by its name in the model."""
    value: Tensor
    """(S * R,), sharded, for S column shards of R rows, or (R, 1)."""
    saved: str
    """Its name in the checkpoint."""
    saved_size: torch.Size
    saved_columns: Sequence[Columns]
    """Of each column shard."""


def take_out(state: State, metadata: Metadata) -> list[RowState]:
    """Takes the row-wise states that were saved under another cut of columns out of `state`.

    Args:
        state: what `training_state` says.
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
    found = []
    for parameter, states in state["optimizer"].items():
        weight = saved.get(f"model.{parameter}")
        if weight is None or len(weight.size) != 2:
            continue
        for name, value in list(states.items()):
            if not isinstance(value, Tensor) or (value.dim() == 2 and value.size(1) > 1) or value.dim() == 0:
                continue
            full = f"optimizer.{parameter}.{name}"
            there = by_part.get(next(iter(parts_of(full, value.size()))))
            if there is None or saved[there].size == value.size():
                continue
            columns = sorted({(c.offsets[1], c.offsets[1] + c.sizes[1]) for c in weight.chunks})
            found.append(RowState(parameter, value, there, saved[there].size, columns))
            del states[name]
            # A count of steps beside it, which a fused optimizer does not save and row-wise Adagrad does not use.
            if f"optimizer.{parameter}.step" not in by_part:
                states.pop("step", None)
    return found


def read(rows: Sequence[RowState], state: State, path: str) -> None:
    """Reads what `take_out` took out, one table at a time in memory.

    Args:
        rows: what it took out.
        state: of the model, for the cut of columns here.
        path: of the checkpoint.
    """
    for row in rows:
        buffer = torch.empty(row.saved_size)
        # Each rank has other tables, so each reads for itself.
        dcp.load({row.saved: buffer}, storage_reader=reader_from(path), no_dist=True)
        there = buffer.view(len(row.saved_columns), -1)
        for columns, first, mine in _pieces(row.value, state["model"][row.parameter]):
            low, high = columns
            mixed = torch.zeros(mine.numel())
            for (start, stop), numbers in zip(row.saved_columns, there, strict=True):
                shared = max(0, min(high, stop) - max(low, start))
                mixed += numbers[first : first + mine.numel()] * (shared / (high - low))
            mine.copy_(mixed.view_as(mine))


def _pieces(value: Tensor, weight: Tensor) -> Iterator[tuple[Columns, int, Tensor]]:
    """What this rank holds of a row-wise state: the columns that it stands for, its first row, and the numbers."""
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
