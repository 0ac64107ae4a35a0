"""Which rows a rank reads, in which order and in how many steps.

An epoch puts all rows of a split into one order, which depends on the seed and the epoch alone: row groups shuffled,
then rows shuffled within runs of row groups ("blocks"). Each rank reads one stretch of that order, so that every
row is read exactly once, and decodes only the row groups that its stretch touches. The rest of an interrupted epoch
can be read later, on other ranks as well (`spans`).
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import IterableDataset, get_worker_info
from torchrec.datasets.utils import Batch

from stem_torchrec.data.batch import Exposures, groups_of, to_batch
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.listing import RowGroup
from stem_torchrec.data.rows import BadRows, read_row_group
from stem_torchrec.data.spans import Left, Span, Spans, after, count, cut, divide, steps_of
from stem_torchrec.data.unseen_ids import read_as_unseen
from stem_torchrec.runtime.errors import UserError

_READS_AT_ONCE = 8
"""Row groups that a reader asks a store for at the same time."""


@dataclass(frozen=True)
class Block:
    """Row groups whose rows are shuffled together."""

    row_groups: tuple[RowGroup, ...]
    start: int
    """Position of the block's first row in the order of the epoch."""
    rows: int
    """Rows of all its row groups."""
    seed: tuple[int, ...] | None
    """Seed of the order of rows; None keeps the order of the files."""


def order_blocks(row_groups: Sequence[RowGroup], *, shuffle_rows: int, seed: int, epoch: int) -> list[Block]:
    """The order of an epoch: blocks of at least `shuffle_rows` rows, the last excepted; 0 keeps the files' order."""
    order: Iterable[int] = range(len(row_groups))
    if shuffle_rows:
        order = np.random.default_rng((seed, epoch)).permutation(len(row_groups)).tolist()
    blocks: list[Block] = []
    run: list[RowGroup] = []
    start = rows = 0
    for position, i in enumerate(order, start=1):
        run.append(row_groups[i])
        rows += row_groups[i].rows
        if rows >= shuffle_rows or position == len(row_groups):
            blocks.append(Block(tuple(run), start, rows, (seed, epoch, len(blocks)) if shuffle_rows else None))
            start += rows
            run, rows = [], 0
    return blocks


class ParquetReader(IterableDataset[Batch | Exposures]):
    """This rank's rows of a split, in batches; every rank makes the same number of steps, and every row is read once.

    The last batches may be smaller. A rank that has fewer rows left than others gets padding, which has neither ids nor
    labels: in training up to the others' number of rows, in evaluation one row if it has none.

    Args:
        row_groups: the row groups of the split, from `find_row_groups`.
        columns: the columns to read.
        batch_size: rows per rank and step.
        rank: the rank of this process.
        world_size: number of processes.
        num_workers: reader processes of each rank, each with a stretch of its own; 0 reads in this process.
        training: yields batches (Batch) in shuffled order if true, else Exposures in the order of the files.
        shuffle_rows: rows shuffled together in training, see `order_blocks`.
        seed: seed of the order.
        max_bad_share: share of this rank's rows of an epoch that may break the schema. They are counted in `bad` and
            become rows without ids and labels. If None, the first one raises an error.

    Raises UserError for a batch size below 1 and a training split without rows, and DataError while iterating.
    """

    def __init__(
        self,
        row_groups: Sequence[RowGroup],
        columns: Columns,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        training: bool = True,
        shuffle_rows: int = 262_144,
        seed: int = 0,
        max_bad_share: float | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}, but must be at least 1.")
        self.row_groups = row_groups
        self.columns = columns
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self.training = training
        self.shuffle_rows = shuffle_rows if training else 0
        self.seed = seed
        self.rows = sum(row_group.rows for row_group in row_groups)
        if training and not self.rows:
            raise UserError("the training split has no rows; give a log that has some.")
        self.bad: BadRows | None = None
        if max_bad_share is not None:
            self.bad = BadRows(columns, max_skipped=int(max_bad_share * self.rows / world_size))
        self.start_epoch(0)

    @property
    def steps(self) -> int:
        """Steps for the rows that are left of the epoch."""
        return steps_of(self.left, self.batch_size)

    def start_epoch(self, epoch: int, left: Left | None = None, *, batch_size: int | None = None) -> None:
        """Chooses the order and the rows of later iterators.

        Args:
            epoch: the epoch, counted from 0.
            left: the rows to read, by default all. They are divided again if they were divided for other numbers of
                ranks or workers, or for another batch size.
            batch_size: the batch size that `left` was divided for, by default this reader's.
        """
        shape = {"ranks": self.world_size, "workers": max(self.num_workers, 1)}
        if left is None:
            left = divide([(0, self.rows)], batch_size=self.batch_size, **shape)
        elif (
            len(left) != shape["ranks"]
            or any(len(of_rank) != shape["workers"] for of_rank in left)
            or batch_size not in (None, self.batch_size)
        ):
            everything = sorted(span for of_rank in left for spans in of_rank for span in spans)
            left = divide(everything, batch_size=self.batch_size, **shape)
        self.epoch, self.left = epoch, left
        if self.bad is not None:
            self.bad.restart()

    def left_after(self, steps: int) -> Left:
        """The rows that are left of the epoch after some steps of an iterator."""
        return after(self.left, steps, self.batch_size)

    def __iter__(self) -> Iterator[Batch | Exposures]:
        worker, workers = get_worker_info(), max(self.num_workers, 1)
        blocks = order_blocks(self.row_groups, shuffle_rows=self.shuffle_rows, seed=self.seed, epoch=self.epoch)
        # A DataLoader takes batches from its workers in turn; without one this process does the same.
        return _in_turn(
            [
                self._batches(blocks, index, steps=len(range(index, self.steps, workers)))
                for index in (range(workers) if worker is None else [worker.id])
            ]
        )

    def _batches(self, blocks: Sequence[Block], worker: int, *, steps: int) -> Iterator[Batch | Exposures]:
        spans = self.left[self.rank][worker]
        most_rows = max(count(of_rank[worker]) for of_rank in self.left)
        buffer, tables, rows = pa.table({}), self._read(blocks, spans), count(spans)
        for position in range(0, steps * self.batch_size, self.batch_size):
            size, largest = (max(0, min(self.batch_size, total - position)) for total in (rows, most_rows))
            while buffer.num_rows < size:
                table = next(tables)
                buffer = _concatenated([buffer, table]) if buffer.num_rows else table
            table, buffer = buffer.slice(0, size), buffer.slice(size)
            if self.training:
                # Some collectives need batches of the same size on all ranks for the backward pass.
                yield to_batch(table, self.columns, rows=max(largest, 1))
            else:
                yield self._exposures(table, cut(spans, position, position + size))

    def _exposures(self, table: pa.Table, spans: Spans) -> Exposures:
        rows = torch.cat([torch.arange(*span) for span in spans or [(0, 0)]])
        batch = to_batch(table, self.columns, rows=max(len(rows), 1))
        types = self.row_groups[0].metadata.schema.to_arrow_schema()
        unseen = read_as_unseen(batch, self.columns) if self.columns.ids_of_log else None
        return Exposures(batch, rows, *groups_of(table, self.columns, types), unseen=unseen)

    def _read(self, blocks: Sequence[Block], spans: Spans) -> Iterator[pa.Table]:
        """The rows of `spans` in the epoch's order; a thread decodes the next block while one is used."""
        parts = [
            (block, (start, stop))
            for start, stop in spans
            for block in blocks
            if block.start < stop and block.start + block.rows > start
        ]
        with ThreadPoolExecutor(1) as executor:
            ahead = [executor.submit(self._load, *part) for part in parts[:1]]
            for i in range(len(parts)):
                table = ahead.pop().result()
                if i + 1 < len(parts):
                    ahead.append(executor.submit(self._load, *parts[i + 1]))
                yield table

    def _load(self, block: Block, span: Span) -> pa.Table:
        skip, group = self.bad is not None, not self.training

        def read(row_group: RowGroup) -> pa.Table:
            return read_row_group(row_group, self.columns, skip=skip, group=group)

        if len(block.row_groups) > 1 and "://" in block.row_groups[0].path:
            # A store answers after a while, in which it can be asked for more.
            with ThreadPoolExecutor(min(len(block.row_groups), _READS_AT_ONCE)) as executor:
                table = _concatenated([*executor.map(read, block.row_groups)])
        else:
            table = _concatenated([*map(read, block.row_groups)])
        first, last = max(span[0] - block.start, 0), min(span[1] - block.start, table.num_rows)
        if block.seed is None:
            table = table.slice(first, last - first)
        else:
            table = table.take(np.random.default_rng(block.seed).permutation(table.num_rows)[first:last])
        return table if self.bad is None else self.bad.take(table)


def _concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of tables, of which some may have a column of nulls only, which takes the type of the others."""
    return pa.concat_tables(tables, promote_options="default")


def _in_turn(iterators: Sequence[Iterator[Batch | Exposures]]) -> Iterator[Batch | Exposures]:
    """Takes one item from each iterator in turn, until one has no more."""
    for iterator in cycle(iterators):
        try:
            yield next(iterator)
        except StopIteration:
            return
