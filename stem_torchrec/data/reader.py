"""Which rows a rank reads, in which order and in how many steps.

An epoch puts all rows of a split into one order, a function of the seed and the epoch alone: row groups shuffled,
then rows shuffled within runs of row groups ("blocks"). Each rank reads one stretch of that order, so that every
row is read exactly once, and decodes only the row groups that its stretch touches. What is left of an epoch can be
read later, on other ranks as well (`spans`).
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import IterableDataset, get_worker_info
from torchrec.datasets.utils import Batch

from stem_torchrec.data.batch import Exposures, to_batch
from stem_torchrec.data.files import Columns, RowGroup, fingerprint
from stem_torchrec.data.rows import BadRows, read_row_group
from stem_torchrec.data.spans import Left, Span, Spans, after, count, cut, divide, steps_of
from stem_torchrec.runtime.errors import UserError


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
    """This rank's rows of a split, in batches; every rank makes the same number of steps, and every row is read once.

    Batches that would reach beyond the end are smaller. A rank that has fewer rows left than others gets padding, which
    has neither ids nor labels: in training up to their number of rows, in evaluation one row where it has none.

    Args:
        row_groups: what `find_row_groups` found.
        columns: the columns to read.
        batch_size: rows per rank and step.
        rank: this process.
        world_size: number of processes.
        num_workers: reader processes of each rank, each with a stretch of its own; 0 reads in this process.
        training: batches (Batch) in shuffled order, or with the places of their rows (Exposures) in the order of the
            files.
        shuffle_rows: rows shuffled together in training, see `order_blocks`.
        seed: seed of the order.
        max_bad_share: share of this rank's rows of an epoch that may break the schema: they are counted in `bad`, and
            come as rows without ids and labels. Without it the first one is an error.

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
            self.bad = BadRows(columns, most=int(max_bad_share * self.rows / world_size))
        self.start_epoch(0)

    @property
    def steps(self) -> int:
        """Steps that the rows left of the epoch take."""
        return steps_of(self.left, self.batch_size)

    @property
    def fingerprint(self) -> str:
        """Of the row groups and their rows, by which spans find rows."""
        return fingerprint(self.row_groups)

    def start_epoch(self, epoch: int, left: Left | None = None, *, batch_size: int | None = None) -> None:
        """Chooses the order of the rows for the iterators to come.

        Args:
            epoch: counted from 0.
            left: the rows to read, by default all. Divided for as many ranks and workers, they are read as they are
                divided; else they are divided anew.
            batch_size: that they are divided for, by default this reader's.
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
        """What is left of the epoch after some steps from where it was started."""
        return after(self.left, steps, self.batch_size)

    def __iter__(self) -> Iterator[Batch | Exposures]:
        worker, workers = get_worker_info(), max(self.num_workers, 1)
        blocks = order_blocks(self.row_groups, shuffle_rows=self.shuffle_rows, seed=self.seed, epoch=self.epoch)
        # A loader takes from its workers in turn, and so does who reads without one.
        return _in_turn(
            [
                self._batches(blocks, index, steps=len(range(index, self.steps, workers)))
                for index in (range(workers) if worker is None else [worker.id])
            ]
        )

    def _batches(self, blocks: Sequence[Block], worker: int, *, steps: int) -> Iterator[Batch | Exposures]:
        spans = self.left[self.rank][worker]
        most = max(count(of_rank[worker]) for of_rank in self.left)
        buffer, tables, rows = pa.table({}), self._read(blocks, spans), count(spans)
        for position in range(0, steps * self.batch_size, self.batch_size):
            size, largest = (max(0, min(self.batch_size, there - position)) for there in (rows, most))
            while buffer.num_rows < size:
                table = next(tables)
                buffer = pa.concat_tables([buffer, table]) if buffer.num_rows else table
            table, buffer = buffer.slice(0, size), buffer.slice(size)
            if self.training:
                # Backward through some collectives takes batches of one size only.
                yield to_batch(table, self.columns, rows=max(largest, 1))
            else:
                yield self._exposures(table, cut(spans, position, position + size))

    def _exposures(self, table: pa.Table, spans: Spans) -> Exposures:
        rows = torch.cat([torch.arange(*span) for span in spans or [(0, 0)]])
        groups = None
        if self.columns.group is not None:
            # Only a row that is skipped, and has no labels, has no group.
            groups = (
                torch.from_numpy(pc.fill_null(table.column(self.columns.group), 0).to_numpy().copy())
                if len(rows)
                else rows
            )
        return Exposures(to_batch(table, self.columns, rows=max(len(rows), 1)), rows, groups)

    def _read(self, blocks: Sequence[Block], spans: Spans) -> Iterator[pa.Table]:
        """The rows of `spans` in the epoch's order; a thread decodes the next block while one is used."""
        mine = [
            (block, (start, stop))
            for start, stop in spans
            for block in blocks
            if block.start < stop and block.start + block.rows > start
        ]
        with ThreadPoolExecutor(1) as executor:
            ahead = [executor.submit(self._load, *piece) for piece in mine[:1]]
            for i in range(len(mine)):
                table = ahead.pop().result()
                if i + 1 < len(mine):
                    ahead.append(executor.submit(self._load, *mine[i + 1]))
                yield table

    def _load(self, block: Block, span: Span) -> pa.Table:
        skip = self.bad is not None
        table = pa.concat_tables([read_row_group(group, self.columns, skip=skip) for group in block.row_groups])
        first, last = max(span[0] - block.start, 0), min(span[1] - block.start, table.num_rows)
        if block.seed is None:
            table = table.slice(first, last - first)
        else:
            table = table.take(np.random.default_rng(block.seed).permutation(table.num_rows)[first:last])
        return table if self.bad is None else self.bad.take(table)


def _in_turn(iterators: Sequence[Iterator[Batch | Exposures]]) -> Iterator[Batch | Exposures]:
    """Takes from each until the first one of a round has no more."""
    for iterator in cycle(iterators):
        try:
            yield next(iterator)
        except StopIteration:
            return
