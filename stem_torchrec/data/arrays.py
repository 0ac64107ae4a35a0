"""Columns of Arrow to arrays and tensors, without a Python loop over rows, and without TorchRec, for serving."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from stem_torchrec.data.checks import row_lengths
from stem_torchrec.data.column_types import is_list


def bags_of(column: pa.ChunkedArray) -> tuple[NDArray, NDArray]:
    """The values of all rows, and how many each row has."""
    array = column.combine_chunks()
    if pa.types.is_null(array.type):
        return np.empty(0, dtype=np.int64), np.zeros(len(array), dtype=np.int32)
    values = pc.list_flatten(array) if is_list(array.type) else array.drop_null()
    return values.to_numpy(), row_lengths(array)


def stacked(
    table: pa.Table, names: tuple[str, ...], padding: int, filler: float, fills: Mapping[str, float] | None = None
) -> Tensor:
    """Columns side by side as float32 (B, len(names)): null as `filler`, then `padding` rows of `filler`.

    A column in `fills` has its number there in the place of nulls.
    """
    numbers = np.full((table.num_rows + padding, len(names)), filler, dtype=np.float32)
    for i, name in enumerate(names if table.num_rows else ()):
        column, fill = table.column(name).cast(pa.float32()), (fills or {}).get(name, filler)
        # Without a fill, null is a number's only in a row that is skipped; a label's null becomes NaN in numpy.
        column = pc.fill_null(column, fill) if column.null_count and fill == fill else column
        numbers[: table.num_rows, i] = column.to_numpy(zero_copy_only=False)
    return torch.from_numpy(numbers)
