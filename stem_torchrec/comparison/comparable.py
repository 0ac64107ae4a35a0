"""Comparable samples: test rows by how a user's (or an item's) positives divide between two tasks in the training log.

Source: STEM (arXiv 2308.13537), which splits samples by the relative amount of positive feedback on two tasks, and
finds that shared embeddings lose to single-task models even where the amounts are comparable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stem_torchrec.comparison.intervals import Ints
from stem_torchrec.data.column_types import is_text
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.label_kinds import labels_in_space
from stem_torchrec.data.listing import RowGroup
from stem_torchrec.data.rows import read_row_group
from stem_torchrec.data.text_groups import numbers_of

EDGES = (0.25, 0.8, 1.25, 4.0)
"""Default edges of the bins; ratios between 0.8 and 1.25 are comparable."""


@dataclass(frozen=True)
class Positives:
    """The positives of two tasks by key (a user or an item) in the training log; K is the number of keys."""

    keys: Ints
    """Ascending, (K,)."""
    counts: NDArray[np.int64]
    """Positives of the first and the second task, (K, 2)."""

    @property
    def totals(self) -> tuple[int, int]:
        """Positives of the first and the second task in the whole log."""
        first, second = self.counts.sum(axis=0).tolist()
        return first, second

    def ratios(self, keys: Ints) -> NDArray[np.float64]:
        """For the key of each row, the ratio of its positives of the two tasks, relative to the whole log; (N,).

        (positives of the first / of the second) over the same ratio of the whole log, so 1 means as in the whole log,
        however rare one of the tasks is. 0 if all are of the second task, infinite if all are of the first, NaN for a
        key without positives of either. Both tasks need positives, or the whole log has no ratio.
        """
        first, second = self.totals
        assert min(first, second) > 0, "a task without positives has no ratios"
        position = np.clip(np.searchsorted(self.keys, keys), 0, max(len(self.keys) - 1, 0))
        known = self.keys[position] == keys if len(self.keys) else np.zeros(len(keys), dtype=bool)
        a, b = np.where(known[:, None], self.counts[position], 0).T if len(self.keys) else np.zeros((2, len(keys)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((a / first) / (b / second), dtype=np.float64)


def key_columns(columns: Columns, key: str, labels: Sequence[str] = ()) -> Columns:
    """The columns of a log that hold a key, which is its group or a sparse feature, and the given labels."""
    feature = {key: columns.sparse[key]} if key != columns.group else {}
    group = None if feature else key
    spaces = {label: space for label, space in columns.spaces.items() if label in labels}
    return Columns(sparse=feature, dense=(), labels=tuple(labels), group=group, spaces=spaces, files=columns.files)


def key_numbers(column: pa.ChunkedArray) -> Ints:
    """Keys as integers (N,), of text as `numbers_of` numbers them and of uint64 their bits; -1 where null."""
    if not is_text(column.type):
        return pc.fill_null(column.cast(pa.int64(), safe=False), -1).to_numpy()
    numbers = numbers_of(pc.fill_null(column, "").combine_chunks())
    return np.where(column.is_valid().to_numpy(), numbers, -1)


def read_keys(row_groups: Sequence[RowGroup], columns: Columns, key: str, *, skip: bool = False) -> Ints:
    """The key of every row (N,), -1 where null; see `count_positives`."""
    selected = key_columns(columns, key)
    tables = (read_row_group(row_group, selected, skip=skip) for row_group in row_groups)
    return np.concatenate([key_numbers(table.column(key)) for table in tables])


def count_positives(
    row_groups: Sequence[RowGroup], columns: Columns, key: str, tasks: tuple[str, str], *, skip: bool = False
) -> Positives:
    """Counts positives by key, with one row group in memory at a time.

    Missing labels, labels outside of their task's space and null keys do not count.

    Args:
        row_groups: of the training log.
        columns: of the log, with the tasks' spaces.
        key: its group, or a sparse feature with one id in each row.
        tasks: two of its labels.
        skip: whether rows that break the schema are skipped; otherwise the first raises DataError.
    """
    columns = key_columns(columns, key, tasks)
    total: pa.Table | None = None
    for row_group in row_groups:
        table = read_row_group(row_group, columns, skip=skip)
        table = table.filter(pc.is_valid(table.column(key)))
        counts = {
            task: pc.fill_null(labels_in_space(task, columns, table.column), 0).cast(pa.int64()) for task in tasks
        }
        part = pa.table({key: pa.array(key_numbers(table.column(key))), **counts})
        both = part if total is None else pa.concat_tables([total, part])
        grouped = both.group_by(key).aggregate([(task, "sum") for task in tasks])
        total = grouped.rename_columns({f"{task}_sum": task for task in tasks}).select([key, *tasks])
    assert total is not None
    total = total.sort_by(key)
    return Positives(total.column(key).to_numpy(), np.stack([total.column(task).to_numpy() for task in tasks], axis=1))


def name_bins(tasks: tuple[str, str], edges: Sequence[float]) -> list[str]:
    """The names of the bins that `bin_of_rows` numbers."""
    first, second = tasks
    bounds = [0.0, *edges, np.inf]
    between = [f"{low:g} to {high:g}" for low, high in pairwise(bounds)]
    return ["no positives", f"only {second}", *between, f"only {first}"]


def bin_of_rows(ratios: NDArray[np.float64], edges: Sequence[float]) -> NDArray[np.int64]:
    """The bin of each row by its ratio, (N,), numbered as in `name_bins`; an edge belongs to the bin above it."""
    between = 2 + np.searchsorted(np.asarray(edges), ratios, side="right")
    bins = np.where(ratios == 0, 1, np.where(np.isinf(ratios), 3 + len(edges), between))
    return np.where(np.isnan(ratios), 0, bins).astype(np.int64)


def edges_ascend(edges: Sequence[float]) -> bool:
    """Whether the edges are finite and ascend from above 0."""
    return all(a < b for a, b in pairwise([0.0, *edges])) and not any(map(np.isinf, edges))
