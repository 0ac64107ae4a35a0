"""The batches of a sweep, read from a log or drawn for a table list.

They depend on the rank and the seed, not on the plan. An id of a table list has frequency rank k with a probability in
proportion to k ** -zipf; the frequency ranks are then scattered over the rows of the table.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.config import DataConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.footers import missing_labels
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import Process

from common.table_list import TableSpec, name_tasks, sparse_features

_POSITIVE_RATE = 0.2
"""Share of ones among random labels."""
_HEAD = 1 << 16
"""Frequency ranks whose shares are summed one by one; beyond them a sum and its integral differ by less than 1e-9."""


@dataclass(frozen=True)
class Workload:
    """What all cases with the same number of tasks train on."""

    columns: Columns
    batches: list[Batch]
    labels_missing: bool
    notes: tuple[str, ...] = ()
    """What a reader of the results should know about the batches, for the report."""

    @property
    def ids_per_row(self) -> dict[str, float]:
        """Mean number of ids per row, by feature, over the batches of this rank."""
        lengths = [batch.sparse_features.lengths().view(len(self.columns.sparse), -1) for batch in self.batches]
        means = torch.cat(lengths, dim=1).double().mean(dim=1).tolist()
        # The planner cannot price a table without ids.
        return {name: max(mean, 1e-3) for name, mean in zip(self.columns.sparse, means, strict=True)}


def workload_of_log(config: DataConfig, path: str, process: Process, *, tasks: int, steps: int, seed: int) -> Workload:
    """This rank's first `steps` full batches of a log; a log with fewer is read from the front again.

    Args:
        config: features, labels, batch size and shuffling.
        path: the folder of the log.
        process: this rank, which reads its share of the rows.
        tasks: number of tasks. If the log has more labels, the first ones are taken; if it has fewer, the further
            tasks get random labels.
        steps: number of batches.
        seed: of the shuffling and the random labels.

    Raises UserError if the log has too few rows for one step of all ranks.
    """
    schema = load_schema(path)
    selected = Columns.select(schema, features=config.features, labels=config.labels)
    columns = replace(selected, labels=selected.labels[:tasks])
    reader = ParquetReader(
        find_row_groups(path, "train", schema, columns),
        columns,
        batch_size=config.batch_size,
        rank=process.rank,
        world_size=process.world_size,
        # A larger block would be decoded for a few of its rows.
        shuffle_rows=min(config.shuffle_rows, steps * config.batch_size * process.world_size),
        seed=seed,
    )
    available = reader.rows // (config.batch_size * process.world_size)
    if not available:
        raise UserError(
            f"the training split of {path} has {reader.rows} rows, fewer than one step of {process.world_size} ranks x "
            f"{config.batch_size}; lower --data.batch-size."
        )
    batches: list[Batch] = list(islice(chain.from_iterable(islice(reader, available) for _ in count()), steps))
    missing = missing_labels(reader.row_groups, [columns.column_of(label) for label in columns.labels])
    notes = []
    if available < steps:
        notes.append(f"the log has {available} steps of this batch size, which repeat")
    if further := tasks - len(columns.labels):
        notes.append(
            f"with {tasks} tasks, {', '.join(columns.labels)} are those of the log and {further} have random labels"
        )
        random = random_labels(config.batch_size, further, steps, seed=(seed, process.rank))
        batches = [
            replace(batch, labels=torch.cat([batch.labels, labels], dim=1))
            for batch, labels in zip(batches, random, strict=True)
        ]
        columns = replace(columns, labels=(*columns.labels, *(f"random_{i + 1}" for i in range(further))))
    return Workload(columns, batches, missing, tuple(notes))


def workload_of_tables(
    tables: Sequence[TableSpec], config: DataConfig, process: Process, *, tasks: int, steps: int, seed: int
) -> Workload:
    """Draws `steps` batches of this rank for a table list, with random labels.

    Args:
        tables: the features.
        config: batch size; its labels name the first tasks, the further ones are called `task_3`, `task_4` and so on.
        process: this rank.
        tasks: number of tasks.
        steps: number of batches.
        seed: the same seed and rank give the same batches.
    """
    batch_size = config.batch_size
    generator = np.random.default_rng((seed, process.rank))
    labels = random_labels(batch_size, tasks, steps, seed=(seed, process.rank))
    columns = Columns(
        sparse={feature.name: feature for feature in sparse_features(tables)},
        dense=(),
        labels=name_tasks(config.labels, tasks),
        group=None,
    )
    batches = []
    for step in range(steps):
        lengths = [draw_lengths(table.pooling, batch_size, generator) for table in tables]
        ids = [
            draw_ids(table.rows, table.zipf, int(length.sum()), generator)
            for table, length in zip(tables, lengths, strict=True)
        ]
        features = KeyedJaggedTensor(
            keys=list(columns.sparse),
            values=torch.from_numpy(np.concatenate(ids)),
            lengths=torch.from_numpy(np.concatenate(lengths)),
        )
        batches.append(Batch(torch.empty(batch_size, 0), features, labels[step]))
    return Workload(columns, batches, labels_missing=False, notes=("ids and labels are random",))


def draw_lengths(mean: float, size: int, generator: np.random.Generator) -> NDArray[np.int32]:
    """Draws `size` numbers of ids per bag: 0 or 1 for a mean below 1, else 1 plus a Poisson number."""
    if mean < 1:
        return (generator.random(size) < mean).astype(np.int32)
    return (1 + generator.poisson(mean - 1, size)).astype(np.int32)


def draw_ids(rows: int, zipf: float, size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draws `size` ids below `rows`; the k-th most frequent id has a share in proportion to k ** -zipf.

    Takes no memory in proportion to `rows`. The frequent ids are scattered over the table, like those of hashed
    features, so that shards of rows are about equally busy.
    """
    head = min(rows, _HEAD)
    shares = np.cumsum(np.arange(1, head + 1, dtype=np.float64) ** -zipf)
    low, high = (_integral(edge, zipf) for edge in (head + 0.5, rows + 0.5))
    drawn = generator.random(size) * (shares[-1] + high - low)
    ranks = np.searchsorted(shares, drawn, side="right").astype(np.int64)
    tail = ranks >= head
    edges = _inverse(low + drawn[tail] - shares[-1], zipf)
    ranks[tail] = np.clip(np.rint(edges).astype(np.int64) - 1, head if rows > head else 0, rows - 1)
    return (ranks * _stride(rows)) % rows


def random_labels(rows: int, tasks: int, steps: int, *, seed: tuple[int, ...]) -> list[torch.Tensor]:
    """Labels (rows, tasks) for each step, a fifth of them 1; a task has the same labels for any number of tasks."""
    drawn = [np.random.default_rng((*seed, task)).random((steps, rows)) for task in range(tasks)]
    labels = torch.from_numpy(np.stack(drawn, axis=-1) < _POSITIVE_RATE).float()
    return list(labels)


def _integral(x: float, zipf: float) -> float:
    """Antiderivative of x ** -zipf."""
    return math.log(x) if zipf == 1 else x ** (1 - zipf) / (1 - zipf)


def _inverse(y: NDArray[np.float64], zipf: float) -> NDArray[np.float64]:
    return np.exp(y) if zipf == 1 else (y * (1 - zipf)) ** (1 / (1 - zipf))


def _stride(rows: int) -> int:
    """A stride that visits every row once; close to the golden section, so that neighbors end up far apart."""
    stride = max(1, round(rows * 0.618))
    while math.gcd(stride, rows) > 1:
        stride += 1
    return stride
