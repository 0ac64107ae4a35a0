"""Rows of Parquet, CSV and JSON lines, read batch by batch from a file, a store or standard input.

What is wrong with one row, as a line that is no JSON, is kept beside the rows; what is wrong with a file is raised.
"""

import io
import json
import lzma
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.preparation.raw_files.csv_text import PACKED
from stem_torchrec.preparation.raw_files.listing import ENDINGS
from stem_torchrec.runtime.errors import UserError, nearest, reason_of
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.serving.inputs import check_names
from stem_torchrec.serving.raw_values import Given

Format = Literal["parquet", "csv", "tsv", "jsonl"]
FORMATS: tuple[Format, ...] = get_args(Format)
STANDARD_STREAM = "-"
"""Stands for standard input or output."""
LONGEST = 2**26
"""Bytes of a line of JSON, and of a cell of CSV, which are in memory as a whole."""
_TABS = (".tsv", ".tab")


@dataclass(frozen=True)
class RowBatch:
    """Some rows of a file.

    Example::

        # {"user": 7, "city": "rome"}
        # {"user": "x"}
        RowBatch({"user": [7, "x"], "city": ["rome", None]}, rows=2, first_row=0, lines=[1, 2])
    """

    columns: dict[str, Given]
    rows: int
    first_row: int
    """The number of the first row in the file, from 0."""
    lines: list[int] | None = None
    """The line of each row, from 1; Parquet has none."""
    broken: dict[int, str] = field(default_factory=dict)
    """Rows of the batch that cannot be read, and why; their columns are null."""
    absent: frozenset[str] = frozenset()
    """Columns that no row has, as keys of JSON."""

    def place(self, row: int) -> str:
        """Where a row of the batch is in its file."""
        return f"row {self.first_row + row}" if self.lines is None else f"line {self.lines[row]}"


def format_of(path: str, given: Format | None, option: str) -> Format:
    """The format of a file by its option, or by the end of its name; of a standard stream JSON lines.

    Raises UserError for a name that does not tell.

    Example::

        format_of("rows.jsonl.gz", None, "--input")  # "jsonl"
    """
    if given is not None:
        return given
    if path == STANDARD_STREAM:
        return "jsonl"
    name = path.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    if name.endswith(_TABS):
        return "tsv"
    kinds: dict[Format, str] = {"parquet": "parquet", "csv": "csv", "jsonl": "json"}
    for kind, known in kinds.items():
        if name.endswith(ENDINGS[known]):
            return kind
    raise UserError(f"{option} {path} does not end as a format does; give {option}-format {'|'.join(FORMATS)}.")


def packing_of(path: str) -> str:
    """The end of a name by which a file is packed, as `.gz`; empty for one that is not."""
    ending = os.path.splitext(path)[1].lower()
    return ending if ending in PACKED else ""


@contextmanager
def open_input(path: str, kind: Format) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file; Parquet from standard input goes to a temporary file first, as its end comes first.

    Raises UserError for Parquet that is packed.
    """
    packing = packing_of(path)
    if packing and kind == "parquet":
        raise UserError(f"{path} is packed, but Parquet is read as it is; unpack it.")
    if path == STANDARD_STREAM:
        if kind != "parquet":
            yield sys.stdin.buffer
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.seek(0)
            yield copy
        return
    with path_of(path).open("rb") as file:
        if packing:
            with PACKED[packing](file) as unpacked:
                yield _with_lines(unpacked)
        else:
            yield file if kind == "parquet" else _with_lines(file)


def _with_lines(file: Any) -> BinaryIO:
    """Arrow's own file knows no lines, and that of a store no longest line."""
    knows = isinstance(file, io.BufferedIOBase) and not isinstance(file, pa.NativeFile)
    return file if knows else io.BufferedReader(file)


def naming_input(path: str, batches: Iterator[RowBatch]) -> Iterator[RowBatch]:
    """The batches; raises UserError, which names the file, where its packing is damaged."""
    try:
        yield from batches
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        # An error of the disk has a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path} cannot be unpacked ({reason_of(error)}); pack it again.") from error


def parquet_batches(file: BinaryIO, path: str, columns: Sequence[str], batch_rows: int) -> Iterator[RowBatch]:
    """The rows of a Parquet file; memory holds the pages of one row group that are being read.

    Raises UserError for a file that is damaged, or lacks a column.
    """
    first = 0
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False)
        check_columns(path, parquet.schema_arrow.names, columns)
        for batch in parquet.iter_batches(batch_size=batch_rows, columns=list(columns)):
            yield RowBatch({name: batch.column(name) for name in columns}, batch.num_rows, first)
            first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path} is no Parquet file, or damaged ({reason_of(error)[:200]}).") from error


def json_batches(file: BinaryIO, path: str, columns: Sequence[str], batch_rows: int) -> Iterator[RowBatch]:
    """The rows of JSON lines; a key that a row lacks is null.

    Raises UserError for a key that no row of the first batch has, where another one has almost its name, and for a line
    without an end.
    """
    first, rows, lines, broken = 0, list[dict[str, Any]](), list[int](), dict[int, str]()
    for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), start=1):
        if len(line) > LONGEST:
            raise UserError(
                f"{path}, line {number}: the line has more than {LONGEST >> 20} MiB; give each row its own."
            )
        if not line.strip():
            continue
        row, reason = _json_row(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
        if reason:
            broken[len(rows)] = reason
        rows.append(row)
        lines.append(number)
        if len(rows) == batch_rows:
            yield _json_batch(rows, path, columns, first, lines, broken)
            first, rows, lines, broken = first + len(rows), [], [], {}
    if rows:
        yield _json_batch(rows, path, columns, first, lines, broken)


def _json_batch(
    rows: list[dict[str, Any]], path: str, columns: Sequence[str], first: int, lines: list[int], broken: dict[int, str]
) -> RowBatch:
    if first == 0:
        keys = {key for row in rows for key in row}
        for name in columns:
            if name not in keys and (hint := nearest(name, sorted(keys.difference(columns)))):
                raise UserError(f"{path}: no row has the key {name!r}{hint}")
    absent = frozenset(name for name in columns if not any(name in row for row in rows))
    values = {name: [row.get(name) for row in rows] for name in columns}
    return RowBatch(values, len(rows), first, lines, broken, absent)


def _json_row(line: bytes) -> tuple[dict[str, Any], str]:
    """An object of JSON, or an empty one and why it cannot be read."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return {}, "the line is no UTF-8"
    except (ValueError, RecursionError) as error:
        return {}, f"the line is no JSON ({reason_of(error)})"
    if not isinstance(row, dict):
        return {}, f'the line is {type(row).__name__} of JSON, but must be an object, as {{"user": 7}}'
    return row, ""


def check_columns(path: str, present: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises UserError, which names the file, for a column that it lacks or has twice."""
    try:
        check_names(pa.schema([(name, pa.null()) for name in present]), wanted)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
