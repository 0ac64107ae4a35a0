"""What DuckDB raises, in one sentence with the file, the row, the value and the fix."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from stem_torchrec.runtime.errors import UnwritableError, UserError, reason_of

_CELL = re.compile(r"cell\t(?P<column>.*?)\t(?P<kind>.*?)\t(?P<value>.*)", re.DOTALL)
"""What `sources` lets a query end with."""
_LINE = re.compile(r"CSV Error on Line: (?P<line>\d+)")
_FILE = re.compile(r"^  file = (?P<file>.*)$", re.MULTILINE)
_CAST = re.compile(r"""column "(?P<column>.*?)"\. Could not convert string "(?P<value>.*?)" to '(?P<kind>.*?)'""")
_CELLS = re.compile(r"Expected Number of Columns: (?P<expected>\d+) Found: (?P<given>\d+)")
_KINDS = {"DOUBLE": "a number", "BIGINT": "a whole number", "BOOLEAN": "true or false"}


@contextmanager
def sentences_of_duckdb() -> Iterator[None]:
    """Raises the errors of DuckDB as UserError, or as UnwritableError where a disk is full."""
    try:
        yield
    except duckdb.Error as error:
        text = str(error)
        if "No space left" in text or "max_temp_directory_size" in text or isinstance(error, duckdb.IOException):
            raise UnwritableError(f"the disk cannot be used ({reason_of(error)[:300]}); make room.") from error
        if isinstance(error, duckdb.OutOfMemoryException):
            raise UserError(
                f"the memory does not suffice ({text.splitlines()[0]}); give more with --memory."
            ) from error
        raise UserError(_sentence(text)) from error


def _sentence(text: str) -> str:
    line, file = _LINE.search(text), _FILE.search(text)
    place = f"{file['file']}, line {line['line']}" if line and file else ""
    if cell := _CELL.search(text):
        return bad_cell(cell["column"], cell["kind"], cell["value"])
    if cast := _CAST.search(text):
        what = _KINDS.get(cast["kind"], cast["kind"].lower())
        return f"{place}: column {cast['column']!r} has {cast['value']!r}, which is not {what}; correct it or its type."
    if cells := _CELLS.search(text):
        return ragged_line(place, int(cells["given"]), int(cells["expected"]))
    if "Invalid unicode" in text:
        return f"{place}: the line is not UTF-8; name the encoding of the source, such as latin-1."
    if "unterminated quote" in text or "Value with unterminated" in text:
        return unclosed_quote(place)
    return f"{place + ': ' if place else ''}{text.splitlines()[0]}."


def bad_cell(column: str, kind: str, value: str) -> str:
    """The sentence for a cell that is no value of its type."""
    what = "a whole number" if kind == "int" else kind
    return f"column {column!r} has {value!r}, which is not {what}; correct it or its type."


def ragged_line(place: str, given: int, expected: int) -> str:
    """The sentence for a line with too many or too few cells."""
    return f"{place}: the line has {given} cells, not {expected}; correct it, or the delimiter and quote of the source."


def unclosed_quote(place: str) -> str:
    """The sentence for a cell that begins with a quote and does not end."""
    return f"{place}: a quote is not closed; correct it, or say quote: '' if the file has none."
