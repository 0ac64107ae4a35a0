"""Rows of tables as numbers of a precision, and files of them, as safetensors or Parquet."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load
from torch import Tensor

from stem_torchrec.config.delta import RowFormat, TablePrecision
from stem_torchrec.deltas.manifest import Piece

FILE_BYTES = 2**26
"""Bytes of weights in fp32 that a file may have, but for its last row."""
_DTYPES = {
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.uint8: "U8",
}
"""What safetensors calls them, in the order in which it writes them."""


@dataclass(frozen=True)
class Rows:
    """Rows of a table, or of some of its columns, in memory."""

    table: str
    """As `like/uid`."""
    column: int
    """The table's column that they start with."""
    numbers: Tensor
    """(n,), which rows, rising."""
    weights: Tensor
    """(n, D) in fp32, or what `quantized` makes of it."""

    @property
    def first(self) -> int | None:
        """The first row if the rows follow each other; None if they do not."""
        if not len(self.numbers):
            return 0
        first, last = int(self.numbers[0]), int(self.numbers[-1])
        return first if last - first + 1 == len(self.numbers) else None


def quantized(weight: Tensor, precision: TablePrecision) -> Tensor:
    """Rows of a table (R, D) in a precision: (R, D), or as int8 (R, D + 8).

    Behind the D bytes of a row in int8 are its scale and offset, as two floats of 32 bits: FBGEMM's format.
    """
    if precision == "int8":
        return torch.ops.quantized.embedding_bag_byte_prepack(weight)
    return weight.half() if precision == "fp16" else weight


def in_files(rows: Sequence[Rows], row_format: RowFormat) -> Iterator[list[Rows]]:
    """The rows cut into blocks, and the blocks of each file; a Parquet file has one, as its rows have one width."""
    block, size = list[Rows](), 0
    for each in rows:
        step = max(1, FILE_BYTES // (4 * each.weights.shape[1]))
        for start in range(0, len(each.numbers), step):
            part = slice(start, start + step)
            block.append(Rows(each.table, each.column, each.numbers[part], each.weights[part]))
            size += block[-1].weights.nbytes
            if size >= FILE_BYTES or row_format == "parquet":
                yield block
                block, size = [], 0
    if block:
        yield block


def encode(block: Sequence[Rows], row_format: RowFormat) -> list[memoryview]:
    """The bytes of a file of rows, which are in their precision, in parts; those of safetensors are not copied.

    Example::

        # safetensors: "0.like/uid.rows" (n,) int32, left out where rows follow each other, "0.like/uid.weights" (n, D)
        # Parquet:     row int32, weights fixed_size_list<float>[D]
    """
    if row_format == "parquet":
        [rows] = block
        values = pa.array(rows.weights.numpy().reshape(-1))
        lists = pa.FixedSizeListArray.from_arrays(values, rows.weights.shape[1])
        sink = pa.BufferOutputStream()
        table = pa.table({"row": _small(rows.numbers).numpy(), "weights": lists})
        # Numbers that look random: what zstd saves is in the rows.
        pq.write_table(table, sink, compression={"row": "zstd", "weights.list.element": "none"}, use_dictionary=False)
        return [memoryview(sink.getvalue())]
    tensors = {}
    for i, rows in enumerate(block):
        if rows.first is None:
            tensors[f"{i}.{rows.table}.rows"] = _small(rows.numbers)
        tensors[f"{i}.{rows.table}.weights"] = rows.weights.contiguous()
    return _safetensors(tensors)


def decode(content: bytes, pieces: Sequence[Piece], row_format: RowFormat) -> list[Rows]:
    """The rows of a file that `encode` wrote, whose pieces the manifest lists."""
    if row_format == "parquet":
        [piece] = pieces
        table = pq.read_table(pa.BufferReader(content))
        lists = table["weights"].combine_chunks()
        values = torch.from_numpy(lists.values.to_numpy().copy()).view(len(lists), -1)
        return [Rows(piece.table, piece.column, torch.from_numpy(table["row"].to_numpy().astype(np.int64)), values)]
    tensors, decoded = load(content), []
    for i, piece in enumerate(pieces):
        weights = tensors[f"{i}.{piece.table}.weights"]
        if piece.first is None:
            numbers = tensors[f"{i}.{piece.table}.rows"].long()
        else:
            numbers = torch.arange(piece.first, piece.first + piece.rows)
        decoded.append(Rows(piece.table, piece.column, numbers, weights))
    return decoded


def whole_rows(parts: Sequence[Rows], columns: int) -> Rows:
    """Rows of a table that was cut by columns, put together."""
    numbers = torch.cat([part.numbers for part in parts]).unique()
    weights = parts[0].weights.new_zeros(len(numbers), columns)
    for part in parts:
        places = torch.searchsorted(numbers, part.numbers)
        weights[places, part.column : part.column + part.weights.shape[1]] = part.weights
    return Rows(parts[0].table, 0, numbers, weights)


def _safetensors(tensors: Mapping[str, Tensor]) -> list[memoryview]:
    """The bytes that `safetensors.torch.save` makes, which copies all of them while no other thread may run."""
    kinds, header, end = list(_DTYPES), {}, 0
    ordered = sorted(tensors.items(), key=lambda item: (kinds.index(item[1].dtype), item[0]))
    for name, tensor in ordered:
        offsets = [end, end := end + tensor.nbytes]
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    bytes_of_tensors = [tensor.reshape(-1).view(torch.uint8).numpy().data for _, tensor in ordered]
    return [memoryview(len(text).to_bytes(8, "little") + text), *bytes_of_tensors]


def _small(numbers: Tensor) -> Tensor:
    return numbers.int() if not len(numbers) or int(numbers[-1]) < 2**31 else numbers
