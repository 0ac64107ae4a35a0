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


def to_batch(table: pa.Table, columns: Columns, *, rows: int) -> Batch:
    """Dense features (B, N) float32, sparse features with a null as an empty bag, labels (B, T) with a null as NaN.

    Args:
        table: the rows; where there are none it needs no columns.
        columns: what is what.
        rows: B is at least this; the rest is padding with empty bags, zeros and missing labels.
    """
    padding = max(rows - table.num_rows, 0)
    nothing = np.empty(0, dtype=np.int64)
    bags = [_bags(table.column(name)) if table.num_rows else (nothing, nothing) for name in columns.sparse]
    values = [values for values, _ in bags]
    empty = np.zeros(padding, dtype=np.int32)
    lengths = [part for _, lengths in bags for part in (lengths, empty)]
    return Batch(
        dense_features=_stack(table, columns.dense, padding, 0.0),
        sparse_features=KeyedJaggedTensor(
            keys=list(columns.sparse),
            values=torch.from_numpy(np.concatenate(values, dtype=np.int64)),
            lengths=torch.from_numpy(np.concatenate(lengths, dtype=np.int32)),
        ),
        labels=_stack(table, columns.labels, padding, np.nan),
    )


def _bags(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    array = column.combine_chunks()
    if pa.types.is_integer(array.type):
        return array.drop_null().to_numpy(), array.is_valid().to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(array), 0)
    return pc.list_flatten(array).to_numpy(), lengths.to_numpy()


def _stack(table: pa.Table, names: tuple[str, ...], padding: int, filler: float) -> Tensor:
    """Columns side by side as float32, null as `filler`, above `padding` rows of `filler`, (B, len(names))."""
    stacked = np.full((table.num_rows + padding, len(names)), filler, dtype=np.float32)
    for i, name in enumerate(names if table.num_rows else ()):
        column = table.column(name).cast(pa.float32())
        # Of dense features only a row that is skipped has a null; a label's is NaN in numpy.
        column = pc.fill_null(column, filler) if column.null_count and filler == filler else column
        stacked[: table.num_rows, i] = column.to_numpy(zero_copy_only=False)
    return torch.from_numpy(stacked)
