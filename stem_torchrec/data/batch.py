"""Rows to tensors: a slice of an Arrow table becomes a TorchRec Batch, without a Python loop over rows."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.data.arrays import bags_of, stacked
from stem_torchrec.data.column_types import is_text
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.label_counts import WeightedBatch
from stem_torchrec.data.text_groups import numbers_of
from stem_torchrec.data.type_checks import group_type


@dataclass
class Exposures:
    """A batch of an evaluation, with the positions of its rows.

    When this rank has no rows left and others do, `batch` holds one row of padding and `rows` is empty.
    """

    batch: Batch
    rows: Tensor
    """Positions of the rows in the split, (B,)."""
    groups: Tensor | None
    """Groups of gAUC, (B,): int64, or uint64 where the log has that; of text the numbers of `text_groups.py`."""
    texts: pa.Array | None = None
    """The groups where they are text, (B,)."""
    unseen: Tensor | None = None
    """How many ids of each feature are newer than its table and read as unseen, (F,); None if the log has no such."""

    def pin_memory(self) -> "Exposures":
        """Copies the batch to pinned memory, from which a GPU copies it; the rest stays on the host."""
        return replace(self, batch=self.batch.pin_memory())


def to_batch(table: pa.Table, columns: Columns, *, rows: int) -> Batch:
    """Dense features (B, N) float32, sparse features with a null as an empty bag, labels (B, T) with a null as NaN.

    The sparse features carry weights if one of them has a column of weights; then all others have weights of 1. If rows
    or labels have weights, the batch is a WeightedBatch, whose padding has weights of 0.

    Args:
        table: the rows; an empty table needs no columns.
        columns: the columns of the log.
        rows: the smallest B; rows beyond those of the table are padding: empty bags, zeros and missing labels.

    Example::

        # tags       tag_weights   uid    like
        # [3, 7]     [0.5, 2.0]    11     1
        # null       null          12     null
        batch = to_batch(table, columns, rows=3)
        batch.sparse_features["tags"].values()   # [3, 7]
        batch.sparse_features["tags"].lengths()  # [2, 0, 0]
        batch.sparse_features["tags"].weights()  # [0.5, 2.0]
        batch.labels                             # [[1], [nan], [nan]]
    """
    padding = max(rows - table.num_rows, 0)
    no_ids = np.empty(0, dtype=np.int64)
    bags = [bags_of(table.column(name)) if table.num_rows else (no_ids, no_ids) for name in columns.sparse]
    values = [values for values, _ in bags]
    empty = np.zeros(padding, dtype=np.int32)
    lengths = [part for _, lengths in bags for part in (lengths, empty)]
    batch = Batch(
        dense_features=stacked(table, columns.dense, padding, 0.0, columns.fills),
        sparse_features=KeyedJaggedTensor(
            keys=list(columns.sparse),
            values=torch.from_numpy(np.concatenate(values, dtype=np.int64)),
            weights=_weights(table, columns, values) if columns.weights else None,
            lengths=torch.from_numpy(np.concatenate(lengths, dtype=np.int32)),
        ),
        labels=_labels(table, columns, padding),
    )
    if not columns.weighs_rows:
        return batch
    weights = stacked(table, tuple(columns.row_weights), padding, 0.0)
    of_task = [[columns.row_weights.index(name) for name in columns.weights_of(label)] for label in columns.labels]
    by_task = torch.stack([weights[:, positions].prod(dim=1) for positions in of_task], dim=1)
    return WeightedBatch(batch.dense_features, batch.sparse_features, batch.labels, by_task)


def groups_of(table: pa.Table, columns: Columns, types: pa.Schema) -> tuple[Tensor | None, pa.Array | None]:
    """The groups of rows (B,) as numbers, and as text where they are text; None for a log without.

    Args:
        table: the rows; an empty table needs no columns.
        columns: the columns of the log.
        types: of some file of the log.
    """
    if columns.group is None:
        return None, None
    kind = group_type(types, columns)
    column = table.column(columns.group).combine_chunks() if table.num_rows else pa.array([], kind)
    if is_text(kind):
        # Only a skipped row, which has no labels, has no group.
        texts = pc.fill_null(column, "")
        return torch.from_numpy(numbers_of(texts)), texts
    return torch.from_numpy(pc.fill_null(column, 0).to_numpy().copy()), None


def _labels(table: pa.Table, columns: Columns, padding: int) -> Tensor:
    """The labels (B, T), NaN where one is missing, or its row outside of its space."""
    if not columns.labeled:
        return torch.full((table.num_rows + padding, len(columns.labels)), torch.nan)
    labels = stacked(table, columns.labels, padding, np.nan)
    if columns.spaces:
        tasks = [columns.labels.index(task) for task in columns.spaces]
        inside = stacked(table, tuple(columns.spaces.values()), padding, np.nan) == 1
        labels[:, tasks] = labels[:, tasks].where(inside, torch.nan)
    return labels


def _weights(table: pa.Table, columns: Columns, ids: list[NDArray]) -> Tensor:
    """A weight for each id of each feature, 1 for features without a column of weights."""
    weights = []
    for name, values in zip(columns.sparse, ids, strict=True):
        column = columns.weights.get(name)
        if column is None or not len(values):
            weights.append(np.ones(len(values), dtype=np.float32))
        else:
            weights.append(bags_of(table.column(column))[0])
    return torch.from_numpy(np.concatenate(weights, dtype=np.float32))
