"""Which rows a rank reads, in which order and in how many steps.

An epoch puts all rows of a split into one order, a function of the seed and the epoch alone: row groups shuffled,
then rows shuffled within runs of row groups ("blocks"). Each rank reads one stretch of that order, so that every
row is read exactly once, and decodes only the row groups that its stretch touches.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchrec.datasets.utils import Batch

from stem_torchrec.data.batch import Exposures, padding, to_batch
from stem_torchrec.data.files import Columns, RowGroup, read_row_group
from stem_torchrec.errors import UserError


@dataclass(frozen=True)
class Block:
    """Row groups whose rows are shuffled together."""

    row_groups: tuple[RowGroup, ...]
    start: int
    """Position of the block's first row in the order of the epoch."""
    seed: tuple[int, ...] | None
    """Seed of the order of rows; None keeps the order of the files."""

    @property
    def rows(self) -> int:
        """Rows of all its row groups."""
        return sum(row_group.rows for row_group in self.row_groups)


def order_blocks(row_groups: Sequence[RowGroup], *, shuffle_rows: int, seed: int, epoch: int) -> list[Block]:
    """The order of an epoch: blocks of at least `shuffle_rows` rows (but the last), 0 for the order of the files."""
    if not shuffle_rows:
        starts = np.cumsum([0, *(row_group.rows for row_group in row_groups)])
        return [Block((row_group,), int(starts[i]), None) for i, row_group in enumerate(row_groups)]
    blocks: list[Block] = []
    run: list[RowGroup] = []
    start = 0
    order = np.random.default_rng((seed, epoch)).permutation(len(row_groups))
    for position, i in enumerate(order):
        run.append(row_groups[i])
        if sum(row_group.rows for row_group in run) >= shuffle_rows or position == len(order) - 1:
            blocks.append(Block(tuple(run), start, (seed, epoch, len(blocks))))
            start += blocks[-1].rows
            run = []
    return blocks


class ParquetReader(IterableDataset[Batch | Exposures]):
    """This rank's rows of a split, in batches; every rank makes the same number of steps.

    In training each rank gets `steps` full batches, and the rows that do not fill another global batch
    (`rows_left_out`; others in each epoch where rows are shuffled) are left out. In evaluation every row is read
    once, the last batches may be smaller, and a rank that has run out of rows gets padding.

    Args:
        row_groups: what `find_row_groups` found.
        columns: the columns to read.
        batch_size: rows per rank and step.
        rank: this process.
        world_size: number of processes.
        training: full batches (Batch) in shuffled order, or every row (Exposures) in the order of the files.
        shuffle_rows: rows shuffled together in training, see `order_blocks`.
        seed: seed of the order.

    Raises UserError for a batch size below 1 and where the rows do not fill one global training batch, and
    DataError while iterating.
    """

    def __init__(
        self,
        row_groups: Sequence[RowGroup],
        columns: Columns,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        training: bool = True,
        shuffle_rows: int = 262_144,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}, but must be at least 1.")
        self.row_groups = row_groups
        self.columns = columns
        self.batch_size = batch_size
        self.training = training
        self.shuffle_rows = shuffle_rows if training else 0
        self.seed = seed
        self.epoch = 0
        self.rows = sum(row_group.rows for row_group in row_groups)
        if training:
            self.steps = self.rows // (batch_size * world_size)
            self.start = rank * self.steps * batch_size
            self.stop = self.start + self.steps * batch_size
        else:
            self.steps = math.ceil(math.ceil(self.rows / world_size) / batch_size)
            self.start = self.rows * rank // world_size
            self.stop = self.rows * (rank + 1) // world_size
        self.rows_left_out = self.rows - self.steps * batch_size * world_size if training else 0
        if training and not self.steps:
            raise UserError(
                f"the training split has {self.rows} rows, fewer than one step of {world_size} ranks x "
                f"{batch_size}; lower --data.batch-size."
            )

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the rows for the iterators to come."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch | Exposures]:
        worker = get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # Batches are taken from the workers in turn, and each worker reads one stretch: its share of the steps.
        counts = [len(range(i, self.steps, workers)) for i in range(workers)]
        start = min(self.start + sum(counts[:index]) * self.batch_size, self.stop)
        stop = min(start + counts[index] * self.batch_size, self.stop)
        blocks = order_blocks(self.row_groups, shuffle_rows=self.shuffle_rows, seed=self.seed, epoch=self.epoch)
        return self._batches(blocks, start, stop, steps=counts[index])

    def _batches(self, blocks: Sequence[Block], start: int, stop: int, *, steps: int) -> Iterator[Batch | Exposures]:
        buffer, tables = pa.table({}), self._read(blocks, start, stop)
        for position in range(start, start + steps * self.batch_size, self.batch_size):
            size = max(0, min(self.batch_size, stop - position))
            while buffer.num_rows < size:
                table = next(tables)
                buffer = pa.concat_tables([buffer, table]) if buffer.num_rows else table
            yield self._batch(buffer.slice(0, size), position)
            buffer = buffer.slice(size)

    def _batch(self, table: pa.Table, position: int) -> Batch | Exposures:
        if self.training:
            return to_batch(table, self.columns)
        group = self.columns.group
        if not table.num_rows:
            nothing = torch.empty(0, dtype=torch.int64)
            return Exposures(padding(self.columns), nothing, None if group is None else nothing)
        rows = torch.arange(position, position + table.num_rows)
        groups = None if group is None else torch.from_numpy(table.column(group).to_numpy().copy())
        return Exposures(to_batch(table, self.columns), rows, groups)

    def _read(self, blocks: Sequence[Block], start: int, stop: int) -> Iterator[pa.Table]:
        """The rows [start, stop) of the epoch's order; a thread decodes the next block while one is used."""
        mine = [block for block in blocks if block.start < stop and block.start + block.rows > start]
        with ThreadPoolExecutor(1) as executor:
            ahead = [executor.submit(self._load, block, start, stop) for block in mine[:1]]
            for i in range(len(mine)):
                table = ahead.pop().result()
                if i + 1 < len(mine):
                    ahead.append(executor.submit(self._load, mine[i + 1], start, stop))
                yield table

    def _load(self, block: Block, start: int, stop: int) -> pa.Table:
        table = pa.concat_tables([read_row_group(row_group, self.columns) for row_group in block.row_groups])
        first, last = max(start - block.start, 0), min(stop - block.start, table.num_rows)
        if block.seed is None:
            return table.slice(first, last - first)
        return table.take(np.random.default_rng(block.seed).permutation(table.num_rows)[first:last])


def data_loader(reader: ParquetReader, *, num_workers: int = 0, pin_memory: bool = False) -> DataLoader:
    """Batches of `reader` made in `num_workers` processes, in the same order on every call."""
    return DataLoader(reader, batch_size=None, num_workers=num_workers, pin_memory=pin_memory, collate_fn=_as_it_is)


def _as_it_is(item: Batch | Exposures) -> Batch | Exposures:
    return item
