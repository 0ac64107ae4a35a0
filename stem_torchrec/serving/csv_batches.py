"""Rows of CSV as text, batch by batch, with the line of each; quotes and blank lines as stem-prepare has them."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.preparation.raw_files.cell_types import unclosed_quote
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.serving.row_files import LONGEST, RowBatch, check_columns

_DELIMITERS = (",", "\t", ";", "|")


@dataclass(frozen=True)
class Dialect:
    """How the cells of a CSV file are written."""

    delimiter: str = ","
    names: tuple[str, ...] = ()
    """Of all columns, for a file without a header."""
    nulls: tuple[str, ...] = ("",)
    """Cells that mean that there is no value."""
    trim: bool = False
    """Whether blanks around a cell do not count."""


def csv_batches(
    file: BinaryIO, path: str, columns: Sequence[str], *, batch_rows: int, dialect: Dialect
) -> Iterator[RowBatch]:
    """The rows of a CSV file in UTF-8, as columns of text.

    Raises UserError for a column that it lacks, names of columns in another encoding, and a quote that is not closed.
    """
    csv.field_size_limit(LONGEST)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, delimiter=dialect.delimiter, strict=True)
    line = 1
    try:
        names = dialect.names or [name.strip() for name in next(reader, [])]
        if not names:
            raise UserError(f"{path} is empty; a CSV file begins with the names of its columns, or give --columns.")
        if not all(_is_utf8(name) and "\0" not in name for name in names):
            raise UserError(
                f"{path}: the names of the columns in the first line are no UTF-8; write the file in UTF-8, as iconv "
                "-f LATIN1 -t UTF-8 does for one in Latin-1."
            )
        if other := next((each for each in _DELIMITERS if len(names) == 1 and each in names[0]), ""):
            raise UserError(f"{path}: the first line has one cell; is the delimiter {other!r}? Give it as --delimiter.")
        check_columns(path, names, columns)
        first, rows, lines, broken = 0, list[list[str]](), list[int](), dict[int, str]()
        line = reader.line_num + 1
        for row in reader:
            if row:
                if len(row) != len(names):
                    broken[len(rows)] = f"the line has {len(row)} cell{'s' * (len(row) != 1)}, not {len(names)}"
                    row = [""] * len(names)
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
            if len(rows) == batch_rows:
                yield _batch(rows, names, columns, RowBatch({}, len(rows), first, lines, broken), dialect)
                first, rows, lines, broken = first + len(rows), [], [], {}
        if rows:
            yield _batch(rows, names, columns, RowBatch({}, len(rows), first, lines, broken), dialect)
    except csv.Error as error:
        raise UserError(unclosed_quote(f"{path}, line {line}")) from error
    finally:
        # Whoever has opened the file closes it.
        text.detach()


def _batch(
    rows: list[list[str]], names: Sequence[str], columns: Sequence[str], batch: RowBatch, dialect: Dialect
) -> RowBatch:
    """The batch with its columns."""
    for name in columns:
        place = list(names).index(name)
        cells = [row[place] for row in rows]
        try:
            texts = pa.array(cells, pa.string())
        except UnicodeEncodeError:
            for i, cell in enumerate(cells):
                if not _is_utf8(cell):
                    batch.broken.setdefault(i, f"column {name!r} is no UTF-8")
            texts = pa.array([cell if _is_utf8(cell) else "" for cell in cells], pa.string())
        if dialect.trim:
            texts = pc.utf8_trim_whitespace(texts)
        missing = pc.is_in(texts, pa.array(dialect.nulls, pa.string()))
        batch.columns[name] = pc.if_else(missing, None, texts)
    return batch


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
