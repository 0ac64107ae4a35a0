"""Where a cell stands that a source cannot take: a second look at its files, as a query does not know their lines."""

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.preparation.engines.engine import RefusedCellError
from stem_torchrec.preparation.raw_files.cell_types import is_beyond_double, words_of, wrong_cell
from stem_torchrec.preparation.raw_files.csv_text import csv_rows, header_of, open_bytes
from stem_torchrec.preparation.raw_files.listing import find_files
from stem_torchrec.preparation.specs.spec import Source, Spec
from stem_torchrec.runtime.errors import UserError


def is_inexact(error: RefusedCellError) -> bool:
    """Whether a cell was refused only because a double may not hold it."""
    return error.column_type in ("int", "list<int>") and is_beyond_double(error.value)


def with_place(error: RefusedCellError, spec: Spec) -> UserError:
    """The error with the file and the line of the first such cell."""
    source = spec.sources[error.source]
    place, cell = next(_places(error, source), (f"sources[{error.source}]", error.value))
    what = words_of(error.column_type, error.value)
    return UserError(wrong_cell(place, f"column {error.column!r} has {cell!r}", what))


def first_place(spec: Spec, column: str, value: Any) -> list[str]:
    """The file and the line of the first cell of the log's source that has a value; empty if none has it as it is."""
    error = RefusedCellError(spec.log, column, "float" if isinstance(value, int | float) else "text", str(value))
    return [place for place, _ in islice(_places(error, spec.sources[spec.log]), 1)]


def _places(error: RefusedCellError, source: Source) -> Iterator[tuple[str, str]]:
    """The place and the text of each such cell."""
    for file in find_files(error.source, source):
        word = "row" if source.type in ("parquet", "delta") else "line"
        for number, cell in _cells(file, source, error.column):
            if _is_same(cell, error.value, error.column_type):
                yield f"{file}, {word} {number}", cell


def _cells(file: str, source: Source, column: str) -> Iterator[tuple[int, str]]:
    """The cells of a column, each with the number of its line or row."""
    if source.type == "csv":
        names = header_of(file, source) if source.header else list(source.columns)
        if column not in names:
            return
        place = names.index(column)
        for number, (line, row) in enumerate(csv_rows(file, source)):
            if len(row) > place and (number or not source.header):
                yield line, row[place].strip() if source.trim else row[place]
    elif source.type == "json":
        with open_bytes(file) as lines:
            for number, text in enumerate(lines, start=1):
                for cell in _flat(_value(text, column)):
                    yield number, cell
    else:
        number = 0
        with pa.OSFile(file) if "://" not in file else open_bytes(file) as opened:
            if column not in pq.ParquetFile(opened).schema_arrow.names:
                return
            for batch in pq.ParquetFile(opened).iter_batches(columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    for cell in _flat(value):
                        yield number, cell


def _value(line: bytes, column: str) -> Any:
    with suppress(ValueError):
        row = json.loads(line)
        return row.get(column) if isinstance(row, dict) else None
    return None


def _flat(value: Any) -> list[str]:
    return [str(each) for each in (value if isinstance(value, list) else [value])]


def _is_same(cell: str, value: str, kind: str) -> bool:
    """Whether the text of a cell is what a query calls `value`, which may write a number in another way."""
    if cell == value:
        return True
    with suppress(ValueError):
        return kind in ("int", "float", "list<int>") and (
            float(cell) == float(value) or cell.lower() == value.lower() == "nan"
        )
    return False
