"""tables.safetensors: tables on disk, written and read as memory-mapped tensors.

A process that opens the file reads the rows that it looks up, and processes on one machine share them in memory.
"""

import json
import mmap
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stem_torchrec.deltas.row_files import quantized
from stem_torchrec.runtime.errors import DamagedError, UserError, reason_of
from stem_torchrec.runtime.whole_file import naming_file
from stem_torchrec.serving.manifest import TableEntry, TablePrecision

_KINDS: dict[TablePrecision, tuple[str, str, int]] = {
    "fp32": ("F32", "<f4", 0),
    "fp16": ("F16", "<f2", 0),
    # FBGEMM's bytes: behind the D of a row its scale and offset, as two floats of 32 bits.
    "int8": ("U8", "u1", 8),
}
"""By precision: the names of the type in safetensors and numpy, and what a row has behind its columns."""


def create_tables(path: Path, tables: Sequence[TableEntry], precision: TablePrecision) -> dict[str, Tensor]:
    """Makes the file and returns its tables to be filled; safetensors itself writes only what is in memory.

    Raises OSError if the disk has not enough room.
    """
    code, kind, extra = _KINDS[precision]
    item = np.dtype(kind).itemsize
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for table in tables:
        shape = [table.rows, table.columns + extra]
        start, end = end, end + shape[0] * shape[1] * item
        header[table.name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with naming_file(path), path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        # Where a disk is full, writing to memory that is mapped would end the process.
        os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)
    filled = {}
    for name, entry in header.items():
        offset = 8 + len(text) + entry["data_offsets"][0]
        filled[name] = torch.from_numpy(
            np.memmap(path, dtype=np.dtype(kind), mode="r+", offset=offset, shape=tuple(entry["shape"]))
        )
    return filled


def open_tables(path: Path, tables: Sequence[TableEntry], precision: TablePrecision) -> list[Tensor]:
    """The tables in the given order, mapped from the file: nothing is read until it is looked up.

    The memory cannot be written to, so a process may map more than the machine has, and shares what it reads.

    Raises DamagedError if the file is damaged or has other tables, and UserError if it cannot be mapped.
    """
    code, kind, extra = _KINDS[precision]
    try:
        # safetensors checks the header alone, as its own tensors are private memory that can be written to, of which
        # Linux refuses more than the machine has.
        with safe_open(path, framework="numpy"):
            header, start = _read_header(path)
        content = _mapped(path)
    except SafetensorError as error:
        raise DamagedError(f"{path} cannot be read ({reason_of(error)}); export the bundle again.") from error
    except (OSError, MemoryError) as error:
        raise UserError(
            f"{path} cannot be mapped into memory ({reason_of(error)}); raise the limit of the process's address space "
            "(ulimit -v), or copy the bundle to a disk whose files can be mapped."
        ) from error
    opened = []
    for table in tables:
        entry, shape = header.get(table.name, {}), [table.rows, table.columns + extra]
        if (entry.get("dtype"), entry.get("shape")) != (code, shape):
            raise DamagedError(
                f"{path} has {table.name} as {entry.get('dtype')} {entry.get('shape')}; export the bundle again."
            )
        first, end = (start + offset for offset in entry["data_offsets"])
        opened.append(_read_only(content[first:end].view(kind).reshape(shape)))
    return opened


def _read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Type, shape and place of each table, and where in the file the places are counted from."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def _mapped(path: Path) -> np.ndarray:
    """The bytes of a file; a page of them is read when it is looked at."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    # Rows are looked up here and there: without this, 16 to 32 pages are read for each.
    memory.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(memory, dtype="u1")


def _read_only(array: np.ndarray) -> Tensor:
    """A tensor of the array's memory, which must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def bytes_of(tables: Sequence[TableEntry], precision: TablePrecision) -> int:
    """Bytes of tables in a precision.

    Example::

        bytes_of([TableEntry("like/uid", "uid", rows=1000, columns=16)], "int8")  # 24_000
    """
    _, kind, extra = _KINDS[precision]
    return sum(table.rows * (table.columns + extra) for table in tables) * np.dtype(kind).itemsize


def write_rows(target: Tensor, weight: Tensor, precision: TablePrecision, *, block: int = 65_536) -> None:
    """Fills a table of the file from its weights, block by block."""
    for start in range(0, len(weight), block):
        target[start : start + block] = quantized(weight[start : start + block], precision)


def read_targets(tables: Mapping[str, Tensor], precision: TablePrecision) -> dict[str, Tensor]:
    """What to read a checkpoint into: the tables of the file themselves in fp32, else memory of their sizes."""
    if precision == "fp32":
        return dict(tables)
    extra = _KINDS[precision][2]
    return {name: torch.empty(len(table), table.shape[1] - extra) for name, table in tables.items()}
