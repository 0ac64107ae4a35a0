"""Raw files as text, for what an engine does not tell: the names of columns, and the line of a cell or a byte."""

import bz2
import codecs
import csv
import gzip
import io
import itertools
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa

from stem_torchrec.preparation.raw_files.cell_types import ragged_line, unclosed_quote
from stem_torchrec.preparation.specs.checks import check_names
from stem_torchrec.preparation.specs.spec import Source
from stem_torchrec.runtime.errors import UserError, reason_of

PACKED: Mapping[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda file: pa.CompressedInputStream(file, "zstd"),
}
"""How to unpack a file, by the end of its name."""
_DIVIDER = "\ue000"
"""Stands for a delimiter of several characters, as Python's reader of CSV takes one."""
_CHUNK = 2**20
_LONGEST_LINE = 2**21
_OTHER_NUMBERS = tuple(bytes([each]) for each in b".eExXbBoOnN")
"""Each text that a type of numbers takes and another does not has one of these bytes: 1.5, 1e-1, 0x1f, 0b1, nan."""
_LONGEST_CELL = 2**31 - 1
"""Python's own limit would end the look for a line before it."""
_ENDS = {"\n": "LF", "\r": "CR", "\r\n": "CRLF"}
_WRONG = ("\udc80", "\udcff")
"""First and last of the characters that Python reads for bytes that are not UTF-8."""


@contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file, local or in a store; raises UserError if it cannot be read."""
    ending = os.path.splitext(path)[1].lower()
    try:
        with fsspec.open(path, "rb") as file:
            if ending not in PACKED:
                yield file
                return
            with PACKED[ending](file) as unpacked:
                yield unpacked
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read ({reason_of(error)}).") from error


def has_whole_numbers_alone(path: str, source: Source) -> bool:
    """Whether all numbers of a local CSV file are written by digits alone, so that none has to be rounded.

    False as well if its texts have some letters, or if it would have to be fetched or unpacked to know.
    """
    if "://" in path or path.lower().endswith(tuple(PACKED)):
        return False
    with open_bytes(path) as file:
        header = file.readline(_LONGEST_LINE) if source.header else b"\n"
        # Lines that end with CR are none of this reader's.
        if not header.endswith(b"\n") or b"\r" in header.removesuffix(b"\r\n"):
            return False
        while chunk := file.read(_CHUNK):
            if any(each in chunk for each in _OTHER_NUMBERS):
                return False
    return True


def csv_rows(path: str, source: Source) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file, each with the number of the line on which it begins.

    Example::

        # a,b
        # 1,"x
        # y"
        list(csv_rows("log.csv", Source("log.csv")))  # [(1, ["a", "b"]), (2, ["1", "x\\ny"])]
    """
    for line, row in _all_rows(path, source):
        if row:
            yield line, row


def line_of_row(path: str, source: Source, number: int) -> int:
    """The line on which a row begins, of rows and blank lines counted from 1; the number itself in a shorter file."""
    rows = itertools.islice(_all_rows(path, source), number - 1, None)
    line, _ = next(rows, (number, []))
    return line


def check_cells(path: str, source: Source) -> None:
    """Raises UserError for the first line with too many or too few cells, or with a quote that is not closed."""
    width = None if source.header else len(source.columns)
    for line, row in _all_rows(path, source, strict=bool(source.quote)):
        width = width or len(row)
        if row and len(row) != width:
            raise UserError(ragged_line(f"{path}, line {line}", len(row), width))


def check_line_ends(path: str, source: Source) -> None:
    """Raises UserError for the first line that ends in another way than the first one, outside of quotes."""
    first, quotes = "", 0
    encoding = "utf-8" if is_utf8(source.encoding) else source.encoding
    with open_bytes(path) as file, io.TextIOWrapper(file, encoding=encoding, errors="replace", newline="") as text:
        for number, line in enumerate(text, start=1):
            quotes += line.count(source.quote) if source.quote else 0
            end = line[len(line.rstrip("\r\n")) :]
            first = first or end
            if end and end != first and quotes % 2 == 0:
                raise UserError(
                    f"{path}, line {number} ends with {_ENDS.get(end, 'line breaks')}, but the first one with "
                    f"{_ENDS[first]}; give all lines the same end."
                )


def _all_rows(path: str, source: Source, *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """As csv_rows, with an empty row for a blank line."""
    encoding = "utf-8-sig" if is_utf8(source.encoding) else source.encoding
    errors = "surrogateescape" if is_utf8(source.encoding) else "replace"
    several = len(source.delimiter) > 1
    csv.field_size_limit(_LONGEST_CELL)
    with open_bytes(path) as file:
        # Without `newline` a line break inside quotes would end the line.
        text: Any = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")
        if several:
            text = (line.replace(source.delimiter, _DIVIDER) for line in text)
        reader = csv.reader(
            text,
            delimiter=_DIVIDER if several else source.delimiter,
            quotechar=source.quote or None,
            quoting=csv.QUOTE_MINIMAL if source.quote else csv.QUOTE_NONE,
            strict=strict,
        )
        line = 1
        try:
            for row in reader:
                yield line, row
                line = reader.line_num + 1
        except csv.Error as error:
            if strict:
                raise UserError(unclosed_quote(f"{path}, line {line}")) from error
            raise UserError(f"{path}, line {line}: the line cannot be read ({reason_of(error)}).") from error


def header_of(path: str, source: Source) -> list[str]:
    """The names in the first line of a CSV file, `column_N` for an empty one; an empty list for an empty file.

    Raises UserError for names that an engine cannot tell apart, and for bytes that are not text.
    """
    line, cells = next(csv_rows(path, source), (1, []))
    if line > 1:
        raise UserError(f"{path} begins with a blank line, but the first one has the names of its columns; delete it.")
    if any("\ufffd" in cell or any(_WRONG[0] <= each <= _WRONG[1] for each in cell) for cell in cells):
        check_bytes(path, source.encoding)
    names = [cell.strip() or f"column_{i}" for i, cell in enumerate(cells, start=1)]
    check_names(path, names)
    return names


def is_utf8(encoding: str) -> bool:
    """Whether text in an encoding is UTF-8."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii")


def decoded(path: str, encoding: str) -> Iterator[str]:
    """The text of a file, in pieces; raises UserError with the position and line of a byte that is none."""
    decoder = codecs.getincrementaldecoder("utf-8-sig" if is_utf8(encoding) else encoding)()
    position, lines = 0, 1
    with open_bytes(path) as file:
        while True:
            chunk = file.read(_CHUNK)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                # What the chunk before left over is in front of this one.
                start = position + len(chunk) - len(error.object) + error.start
                lines += error.object[: error.start].decode(encoding, "ignore").count("\n")
                raise UserError(
                    f"{path}, line {lines}: the byte 0x{error.object[error.start]:02x} at position {start} is not "
                    f"{encoding}; name the encoding of the source, such as latin-1 or gb18030."
                ) from error
            yield text
            if not chunk:
                return
            position += len(chunk)
            lines += text.count("\n")


def check_bytes(path: str, encoding: str) -> None:
    """Raises UserError as `decoded` does."""
    for _ in decoded(path, encoding):
        pass
