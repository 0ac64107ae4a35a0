"""How a CSV file is written: delimiter, quote, header and blanks around cells, from its first megabyte.

DuckDB's own sniffer refuses a comma and a blank between cells as in Adult, and takes numbers between blanks for a time.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stem_torchrec.preparation.raw_files.csv_text import open_bytes
from stem_torchrec.runtime.errors import UserError

SAMPLE_BYTES = 1 << 20
_DELIMITERS = (",", "\t", ";", "|", "\x01", "\x02", "^", "~")
_WEAK_DELIMITERS = (" ", ":")
"""Characters that texts and times have as well; taken only where no other one fits."""
_ALIKE, _MOSTLY = 0.99, 0.5
"""Shares of lines with the same number of cells that make a delimiter certain, or likely."""
_LINES = 2000
_NAME = re.compile(r"[^\W\d][\w .\-/:()%#]*")


@dataclass(frozen=True)
class Dialect:
    """How cells are written."""

    delimiter: str
    quote: str
    trim: bool
    """Whether blanks stand around cells."""
    header: tuple[str, ...] | None
    """The names in the first line; None if that is a row."""
    width: int
    """Cells of a line."""


def first_text(path: str) -> str:
    """The first whole lines of a file, unpacked, at most SAMPLE_BYTES.

    Raises UserError for a file that cannot be read, is empty, or is not UTF-8.
    """
    with open_bytes(path) as file:
        content = file.read(SAMPLE_BYTES + 1)
    if len(content) > SAMPLE_BYTES:
        content = content[: content.rfind(b"\n") + 1] or content
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}.") from error
    if not text.strip():
        raise UserError(f"{path} is empty; give a file with rows.")
    return text


def guess_dialect(text: str, path: str) -> Dialect:
    """How a CSV file is written.

    Args:
        text: its first lines.
        path: the file, for errors.

    Raises UserError if no delimiter gives lines the same number of cells.

    Example::

        guess_dialect("a;b\\n1;2\\n", "x.csv")  # Dialect(";", '"', False, ("a", "b"), 2)
    """
    for delimiters, share in ((_DELIMITERS, _ALIKE), (_WEAK_DELIMITERS, _ALIKE), (_DELIMITERS, _MOSTLY)):
        fits = []
        for quote in ('"', ""):
            for delimiter in delimiters:
                rows = _rows(text, delimiter, quote)
                width, times = Counter(map(len, rows)).most_common(1)[0]
                if width > 1 and times >= share * len(rows):
                    fits.append((width, delimiter, quote, rows))
        if fits:
            # The first of those with the most cells: with a quote, if that makes no difference.
            width, delimiter, quote, rows = max(fits, key=lambda fit: fit[0])
            unquoted = _rows(text, delimiter, "")
            if all(len(row) == width for row in unquoted) and any(_has_lone_quote(row) for row in unquoted):
                quote, rows = "", unquoted
            return _dialect(width, delimiter, quote, rows)
    raise UserError(
        f"{path} has no delimiter that gives its lines the same number of cells (tried comma, tab, ; | ^ ~ and blank); "
        "write a spec with its delimiter."
    )


def _rows(text: str, delimiter: str, quote: str) -> list[list[str]]:
    lines = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quotechar=quote or None,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
    )
    rows = []
    try:
        for row in lines:
            if row and row != [""]:
                rows.append(row)
            if len(rows) == _LINES:
                break
    except csv.Error:
        return [[]]
    return rows or [[]]


def _has_lone_quote(row: Sequence[str]) -> bool:
    """Whether a cell has a quote that does not close, as in `5" pipe`."""
    return any(cell.count('"') % 2 for cell in row)


def _dialect(width: int, delimiter: str, quote: str, rows: Sequence[Sequence[str]]) -> Dialect:
    trim = delimiter != " " and any(cell != cell.strip(" ") for row in rows for cell in row)
    cells = [[cell.strip() for cell in row] for row in rows if len(row) == width]
    header = tuple(cells[0]) if len(rows[0]) == width and _is_header(cells[0], cells[1:]) else None
    return Dialect(delimiter, quote, trim, header, width)


def _is_header(first: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first line has names: different ones, none a number, none a value of its column."""
    if not all(_NAME.fullmatch(cell) for cell in first) or len(set(first)) < len(first):
        return False
    columns = list(zip(*rows, strict=True))
    return not any(cell in column for cell, column in zip(first, columns, strict=False))
