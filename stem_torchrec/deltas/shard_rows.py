"""The rows of tables that changed, from this rank's shards of a model to host memory."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from stem_torchrec.deltas.manifest import DeltaTable
from stem_torchrec.deltas.row_files import Rows
from stem_torchrec.deltas.touched import on_any_rank
from stem_torchrec.runtime.internals.pytorch import ShardedTensor
from stem_torchrec.tables import TableTensor, split_columns, table_feature


@dataclass(frozen=True)
class _Block:
    """The columns of one group in a shard of this rank."""

    table: str
    weight: Tensor
    row: int
    """The table's row that it starts with."""
    column: int


@dataclass(frozen=True)
class ModelTensors:
    """The weights of a sharded model, as deltas ship them.

    Args:
        state: its state dict.
        bits: of the tasks that train a table, by the table's name in the split layout.
        whole: tables, by their names in the model, in which every step moves all rows.
    """

    state: Mapping[str, Tensor]
    bits: Mapping[str, int]
    whole: Collection[str] = field(default=())

    @cached_property
    def tables(self) -> tuple[DeltaTable, ...]:
        """All tables of the split layout."""
        tables = []
        for tensor, value in self._of_tables():
            rows, width = size_of(value)
            for table, columns in split_columns(tensor.table, width).items():
                packed = (tensor.table, columns.start) if table != tensor.table else ("", 0)
                tables.append(DeltaTable(table, rows, len(columns), *packed))
        return tuple(tables)

    @property
    def prefix(self) -> str:
        """What the names of tables begin with."""
        return next(tensor.prefix for tensor, _ in self._of_tables())

    def cut_by_columns(self) -> list[str]:
        """The tables of which some shard, on any rank, has some of a group's columns; the same on all ranks."""
        cut = []
        for tensor, value in self._of_tables():
            shards = value.metadata().shards_metadata if isinstance(value, ShardedTensor) else []
            edges = {
                edge for each in shards for edge in (each.shard_offsets[1], each.shard_offsets[1] + each.shard_sizes[1])
            }
            for table, columns in split_columns(tensor.table, size_of(value)[1]).items():
                if any(columns.start < edge < columns.stop for edge in edges):
                    cut.append(table)
        return cut

    def dense(self) -> dict[str, Tensor]:
        """Copies of the weights that are in no table, in host memory."""
        return {
            name: value.detach().to("cpu", copy=True)
            for name, value in self.state.items()
            if TableTensor.parse(name) is None
        }

    def all_rows(self) -> list[Rows]:
        """Copies of all rows that this rank ships; of a table that all ranks have, rank 0 does."""
        return [_copied(block, None) for tensor, value in self._of_tables() for block in _blocks(tensor, value)]

    def changed_rows(
        self, touched: Mapping[str, NDArray], group: dist.ProcessGroup | None, *, whole: Collection[str] = ()
    ) -> list[Rows]:
        """Copies of the rows that this rank ships and that were touched on any; all ranks call it.

        Args:
            touched: what `TouchedRows.take` has returned on this rank.
            group: the ranks.
            whole: tables of the split layout that are shipped with all rows.
        """
        by_feature: dict[str, list[_Block]] = {}
        for tensor, value in self._of_tables():
            every = tensor.table in self.whole
            for block in _blocks(tensor, value):
                by_feature.setdefault(table_feature(tensor.table), []).append(block)
                if every:
                    whole = {*whole, block.table}
        changed = []
        # One feature at a time, in the same order on all ranks.
        for feature, own in touched.items():
            bits = on_any_rank(own, group)
            chosen: dict[tuple[int, int, int], Tensor] = {}
            for block in by_feature.get(feature, []):
                if block.table in whole:
                    changed.append(_copied(block, None))
                    continue
                key = (block.row, len(block.weight), self.bits[block.table])
                if key not in chosen:
                    chosen[key] = _rows_with(bits, *key)
                if len(chosen[key]):
                    changed.append(_copied(block, chosen[key]))
        return changed

    def _of_tables(self) -> Iterator[tuple[TableTensor, Tensor]]:
        for name, value in self.state.items():
            tensor = TableTensor.parse(name)
            if tensor is not None:
                yield tensor, value


def size_of(value: Tensor) -> tuple[int, int]:
    """Rows and columns of a table, on all ranks together."""
    # A ShardedTensor warns where it is asked itself.
    rows, columns = value.metadata().size if isinstance(value, ShardedTensor) else value.shape
    return int(rows), int(columns)


def _blocks(tensor: TableTensor, value: Tensor) -> Iterator[_Block]:
    """This rank's blocks of a table."""
    shards: list[tuple[Tensor, int, int]] = [(value, 0, 0)] if dist.get_rank() == 0 else []
    if isinstance(value, ShardedTensor):
        pieces = [(each.tensor, each.metadata.shard_offsets) for each in value.local_shards()]
        shards = [(tensor, int(offsets[0]), int(offsets[1])) for tensor, offsets in pieces]
    for weight, row, column in shards:
        for table, columns in split_columns(tensor.table, size_of(value)[1]).items():
            left, right = max(columns.start, column), min(columns.stop, column + weight.shape[1])
            if left < right and len(weight):
                yield _Block(table, weight[:, left - column : right - column], row, left - columns.start)


def _rows_with(bits: NDArray, row: int, rows: int, wanted: int) -> Tensor:
    """The rows of a shard, from its first on, that have one of the wanted bits."""
    return torch.from_numpy(np.flatnonzero(bits[row : row + rows] & bits.dtype.type(wanted)))


def _copied(block: _Block, rows: Tensor | None) -> Rows:
    """Rows of a block in host memory; all of them for None."""
    weight = block.weight.detach()
    if rows is None:
        numbers = torch.arange(block.row, block.row + len(weight))
        return Rows(block.table, block.column, numbers, weight.to("cpu", copy=True).contiguous())
    chosen = weight.index_select(0, rows.to(weight.device))
    return Rows(block.table, block.column, rows + block.row, chosen.cpu())
