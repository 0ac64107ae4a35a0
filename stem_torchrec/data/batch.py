"""Rows to tensors: a slice of an Arrow table becomes a TorchRec Batch, without a Python loop over rows."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.data.files import Columns


@dataclass
class Exposures:
    """A batch of an evaluation and which rows it holds.

    Where other ranks still have rows and this one has none, `batch` holds one row of padding and `rows` is empty.
    """

    batch: Batch
    rows: Tensor
    """Positions of the rows in the split, (B,)."""
    groups: Tensor | None
    """Groups of gAUC, (B,)."""

    def pin_memory(self) -> "Exposures":
        """The same with the batch in pinned memory, for the copy to a GPU; the rest stays on the host anyway."""
        return replace(self, batch=self.batch.pin_memory())


def to_batch(table: pa.Table, columns: Columns) -> Batch:
    """Dense features (B, N) float32, sparse features with a null as an empty bag, labels (B, T) with a null as NaN."""
    values, lengths = zip(*(_bags(table.column(name)) for name in columns.sparse), strict=True)
    return Batch(
        dense_features=_stack(table, columns.dense),
        sparse_features=KeyedJaggedTensor(
            keys=list(columns.sparse),
            values=torch.from_numpy(np.concatenate(values, dtype=np.int64)),
            lengths=torch.from_numpy(np.concatenate(lengths, dtype=np.int32)),
        ),
        labels=_stack(table, columns.labels),
    )


def padding(columns: Columns) -> Batch:
    """One row with empty bags, zeros and missing labels."""
    return Batch(
        dense_features=torch.zeros(1, len(columns.dense)),
        sparse_features=KeyedJaggedTensor(
            keys=list(columns.sparse),
            values=torch.empty(0, dtype=torch.int64),
            lengths=torch.zeros(len(columns.sparse), dtype=torch.int32),
        ),
        labels=torch.full((1, len(columns.labels)), torch.nan),
    )


def _bags(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    array = column.combine_chunks()
    if pa.types.is_integer(array.type):
        return array.drop_null().to_numpy(), array.is_valid().to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(array), 0)
    return pc.list_flatten(array).to_numpy(), lengths.to_numpy()


def _stack(table: pa.Table, names: tuple[str, ...]) -> Tensor:
    """Columns side by side as float32, (B, len(names)), null as NaN."""
    stacked = np.empty((table.num_rows, len(names)), dtype=np.float32)
    for i, name in enumerate(names):
        stacked[:, i] = table.column(name).cast(pa.float32()).to_numpy(zero_copy_only=False)
    return torch.from_numpy(stacked)
