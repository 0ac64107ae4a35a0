"""Probabilities as Parquet, CSV or JSON lines: a file that appears when it is complete, or standard output."""

import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.store_path import StorePath, path_of
from stem_torchrec.runtime.whole_file import naming_file, whole_file
from stem_torchrec.serving.row_files import STANDARD_STREAM, Format

_ROW_GROUP = 65_536


class Writer(Protocol):
    """Writes tables of the same columns one after another."""

    def write(self, table: pa.Table) -> None:
        """Adds rows."""

    def close(self) -> None:
        """Writes what is left; the file stays open."""


class ReaderGoneError(Exception):
    """Nobody reads standard output any more, as after `| head`."""


@contextmanager
def open_output(path: str, kind: Format) -> Iterator[Writer]:
    """A writer to a file, which appears at the end of the block, and not at all after an error, or to standard output.

    Each table is written to standard output at once. A link stays, and the file that it leads to is replaced.

    Raises ReaderGoneError for standard output that is closed at its other end.
    """
    target = path_of(path)
    if path == STANDARD_STREAM:
        with _standard_output() as file, _writer(file, kind) as writer:
            yield writer
    elif isinstance(target, StorePath):
        with target.open("wb") as file, _writer(file, kind) as writer:
            yield writer
    else:
        # Not through a path of Arrow: an error of a full disk has a number here.
        with (
            whole_file(Path(os.path.realpath(target)), shared=True) as new,
            new.open("xb") as file,
            _writer(file, kind) as writer,
        ):
            yield writer


@contextmanager
def _standard_output() -> Iterator[BinaryIO]:
    """Standard output for the rows alone; what else the process prints goes to standard error meanwhile."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        # Unbuffered: a table is written as a whole.
        with naming_file("standard output"), io.FileIO(own, "w", closefd=False) as raw:
            yield raw
    except BrokenPipeError as error:
        raise ReaderGoneError from error
    finally:
        sys.stdout.flush()
        os.dup2(own, 1)
        os.close(own)


@contextmanager
def _writer(file: BinaryIO, kind: Format) -> Iterator[Writer]:
    """Closes the writer unless the block ends with an error."""
    makers: dict[Format, Callable[[BinaryIO], Writer]] = {
        "parquet": _Parquet,
        "csv": lambda sink: _Text(sink, _CSV(",")),
        "tsv": lambda sink: _Text(sink, _CSV("\t")),
        "jsonl": lambda sink: _Text(sink, _json_lines),
    }
    writer = makers[kind](file)
    yield writer
    writer.close()


class _Parquet:
    """Holds one row group in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []

    def write(self, table: pa.Table) -> None:
        self._pending.append(table)
        if sum(each.num_rows for each in self._pending) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        try:
            table = pa.concat_tables(self._pending, promote_options="permissive")
            self._writer = self._writer or pq.ParquetWriter(self._file, table.schema)
            self._writer.write_table(table.cast(self._writer.schema))
        except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
            raise UserError(
                f"the columns of --keep have values of several types ({reason_of(error)[:200]}), which Parquet does "
                "not take; write JSON lines."
            ) from error
        self._pending = []

    def close(self) -> None:
        if self._pending:
            self._flush()
        if self._writer is not None:
            self._writer.close()


class _Text:
    """Writes the text of each table at once."""

    def __init__(self, file: BinaryIO, text_of: Callable[[pa.Table], str]) -> None:
        self._file, self._text_of = file, text_of

    def write(self, table: pa.Table) -> None:
        rest = memoryview(self._text_of(table).encode())
        while rest:
            # A pipe takes a part where a signal comes.
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        pass


class _CSV:
    """The lines of tables, the first with the names of the columns."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter, self._is_first = delimiter, True

    def __call__(self, table: pa.Table) -> str:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=self._delimiter, lineterminator="\n")
        if self._is_first:
            writer.writerow(table.column_names)
            self._is_first = False
        writer.writerows(zip(*(_cells(column) for column in table.columns), strict=True))
        return text.getvalue()


def _cells(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column as CSV has them: lists and objects as JSON."""
    if pa.types.is_float32(column.type):
        return column.cast(pa.string()).to_pylist()
    if pa.types.is_nested(column.type) or pa.types.is_boolean(column.type):
        return [None if value is None else _json(value) for value in column.to_pylist()]
    return column.to_pylist()


def _json_lines(table: pa.Table) -> str:
    keys = [f"{_json(name)}: " for name in table.column_names]
    columns = []
    for column in table.columns:
        if pa.types.is_float32(column.type):
            # Its shortest text, where the double of the same value would have 17 digits.
            finite = pc.if_else(pc.is_finite(column), column, None)
            columns.append([value or "null" for value in finite.cast(pa.string()).to_pylist()])
        else:
            columns.append([_json(value) for value in column.to_pylist()])
    rows = zip(*columns, strict=True)
    return "".join(f"{{{', '.join(key + value for key, value in zip(keys, row, strict=True))}}}\n" for row in rows)


def _json(value: Any) -> str:
    """A value as JSON; times and decimals are texts, and NaN and infinity, which JSON lacks, are null."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
