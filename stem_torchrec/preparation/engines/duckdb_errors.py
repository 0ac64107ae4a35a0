"""What DuckDB raises, in one sentence with the file, the line, the value and the fix."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice

import duckdb

from stem_torchrec.preparation.engines.engine import RefusedCellError
from stem_torchrec.preparation.raw_files.cell_types import WORDS, ragged_line, unclosed_quote
from stem_torchrec.preparation.raw_files.csv_text import check_bytes, line_of_row, open_bytes
from stem_torchrec.preparation.specs.spec import Source
from stem_torchrec.runtime.errors import UnwritableError, UserError, reason_of

_CELL = re.compile(r"cell\t(?P<source>.*?)\t(?P<column>.*?)\t(?P<kind>.*?)\t(?P<value>.*)", re.DOTALL)
"""What `cell_values` lets a query end with."""
_LINE = re.compile(r"CSV Error on Line: (?P<line>\d+)")
_FILE = re.compile(r"^  file = (?P<file>.*)$", re.MULTILINE)
_CAST = re.compile(r"""column "(?P<column>.*?)"\. Could not convert string "(?P<value>.*?)" to '(?P<kind>.*?)'""")
_CELLS = re.compile(r"Expected Number of Columns: (?P<expected>\d+) Found: (?P<given>\d+)")
_JSON = re.compile(r'JSON in(?: file)? "(?P<file>.*?)"|JSON transform error in file "(?P<cell_file>.*?)"')
_DISK = re.compile("max_temp_directory_size|No space left|Could not write file|Disk quota|Input/output error")
"""What an error of another class has where the disk fails, as the end of a transaction."""
_KINDS = {
    "DOUBLE": "float",
    "BIGINT": "int",
    "BOOLEAN": "bool",
    "TIMESTAMP": "timestamp",
    "TIMESTAMP WITH TIME ZONE": "timestamp",
    "DATE": "date",
}


@contextmanager
def sentences_of_duckdb(
    names: Mapping[str, str] | None = None,
    kinds: Mapping[str, str] | None = None,
    sources: Mapping[str, Source] | None = None,
) -> Iterator[None]:
    """Raises the errors of DuckDB as UserError, or as UnwritableError where a disk is full.

    Args:
        names: the files of the user by those that DuckDB reads in their place.
        kinds: types of columns that DuckDB reads as another type.
        sources: of the files of the user.
    """
    try:
        yield
    except duckdb.Error as error:
        text = str(error)
        for copy, file in (names or {}).items():
            text = text.replace(copy, file)
        if _DISK.search(text) or isinstance(error, duckdb.IOException):
            raise UnwritableError(f"the disk cannot be used ({reason_of(error)[:300]}); make room.") from error
        if isinstance(error, duckdb.OutOfMemoryException):
            raise UserError(
                f"the memory does not suffice ({text.splitlines()[0]}); give more with --memory."
            ) from error
        if cell := _CELL.search(text):
            raise RefusedCellError(cell["source"], cell["column"], cell["kind"], cell["value"]) from error
        raise UserError(_sentence(text, kinds or {}, sources or {})) from error


def _sentence(text: str, kinds: Mapping[str, str], sources: Mapping[str, Source]) -> str:
    line, file = _LINE.search(text), _FILE.search(text)
    place = _place(file["file"], int(line["line"]), sources) if line and file else ""
    if cast := _CAST.search(text):
        kind = kinds.get(cast["column"], _KINDS.get(cast["kind"], cast["kind"].lower()))
        what = WORDS.get(kind, kind)
        return f"{place}: column {cast['column']!r} has {cast['value']!r}, which is not {what}; correct it or its type."
    if cells := _CELLS.search(text):
        return ragged_line(place, int(cells["given"]), int(cells["expected"]))
    if "Invalid unicode" in text and file:
        check_bytes(file["file"], "utf-8")
        return f"{place}: the line is not UTF-8; name the encoding of the source, such as latin-1."
    if "unterminated quote" in text or "Value with unterminated" in text:
        return unclosed_quote(place)
    if json_file := _JSON.search(text):
        return _sentence_of_json(json_file["file"] or json_file["cell_file"], text)
    if file:
        # It may be a cell of another type, whose bytes DuckDB does not print.
        check_bytes(file["file"], "utf-8")
    return f"{place + ': ' if place else ''}{text.splitlines()[0]}"


def _place(file: str, row: int, sources: Mapping[str, Source]) -> str:
    """The file and the line; DuckDB counts rows, of which one may have several lines."""
    return f"{file}, line {line_of_row(file, sources[file], row) if file in sources else row}"


def _sentence_of_json(path: str, text: str) -> str:
    """The first line that is no JSON object, or the value that is not of its type."""
    if cell := re.search(r"in line (?P<line>\d+): Failed to cast value to (?P<kind>.*?): (?P<value>.*)", text):
        value = cell["value"].rstrip(".")
        column = _column_of_json(path, int(cell["line"]), value)
        what = {"numerical": "a number", "list": "a list"}.get(cell["kind"], cell["kind"])
        return f"{path}, line {cell['line']}: {column}{value}, which is not {what}; correct it or its type."
    with suppress(UserError), open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                value = json.loads(line) if line.strip() else {}
            except json.JSONDecodeError as error:
                return f"{path}, line {number}: the line is no JSON ({error.msg} at character {error.pos}); correct it."
            if not isinstance(value, dict):
                return f"{path}, line {number}: the line is {str(value)[:80]}, not an object in braces; correct it."
    return f"{path}: {text.splitlines()[0]}"


def _column_of_json(path: str, line: int, value: str) -> str:
    """`column 'age' has `, or `the line has ` if the line does not tell."""
    with suppress(UserError, ValueError, StopIteration), open_bytes(path) as file:
        row = json.loads(next(islice(file, line - 1, None)))
        name = next(name for name, each in row.items() if value in json.dumps(each, ensure_ascii=False))
        return f"column {name!r} has "
    return "the line has "
