"""What DuckDB raises, in one sentence with the file, the line, the value and the fix."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.preparation.engines.engine import refused_cell
from stem_torchrec.preparation.raw_files.cell_types import (
    WORDS,
    long_line,
    ragged_line,
    unclosed_quote,
    words_of,
    wrong_cell,
)
from stem_torchrec.preparation.raw_files.csv_text import (
    check_bytes,
    check_cells,
    check_line_ends,
    line_of_row,
    open_bytes,
)
from stem_torchrec.preparation.specs.spec import Source
from stem_torchrec.runtime.errors import UnwritableError, UserError, reason_of

_LINE = re.compile(r"CSV Error on Line: (?P<line>\d+)")
_FILE = re.compile(r"^  file = (?P<file>.*)$", re.MULTILINE)
_CAST = re.compile(r"""column "(?P<column>.*?)"\. Could not convert string "(?P<value>.*?)" to '(?P<kind>.*?)'""")
_CELLS = re.compile(r"Expected Number of Columns: (?P<expected>\d+) Found: (?P<given>\d+)")
_JSON = re.compile(r'(?:JSON in(?: file)?|JSON transform error in file|exceeded while reading file) "(?P<file>.*?)"')
_WRONG_JSON = re.compile(r"in line (?P<line>\d+): (?P<reason>.*)")
_WRONG_VALUE = re.compile(
    r"Failed to cast value to (?P<kind>.*?): (?P<value>.*)|Unable to cast '(?P<other>.*)' to (?P<other_kind>.*)"
    r"|Expected ARRAY, but got \w+: (?P<third>.*)"
)
_DISK = re.compile("max_temp_directory_size|No space left|Could not write file|Disk quota|Input/output error")
"""What an error of another class has where the disk fails, as the end of a transaction."""
_CLASS = re.compile(r"^([A-Z]\w+ )+Error: ")
_LONG = ("Maximum line size", "does not support a full read on this file")
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
        is_io = isinstance(error, duckdb.IOException) and not _DISK.search(text)
        if is_io and (unread := next((file for file in sources or () if file in text), None)):
            raise UserError(f"{unread} cannot be read ({_CLASS.sub('', text.splitlines()[0])[:300]}).") from error
        if is_io or _DISK.search(text):
            raise UnwritableError(f"the disk cannot be used ({reason_of(error)[:300]}); make room.") from error
        if isinstance(error, duckdb.OutOfMemoryException):
            raise UserError(
                f"the memory does not suffice ({text.splitlines()[0]}); give more with --memory."
            ) from error
        if cell := refused_cell(text):
            raise cell from error
        raise UserError(_sentence(text, kinds or {}, sources or {})) from error


def _sentence(text: str, kinds: Mapping[str, str], sources: Mapping[str, Source]) -> str:
    line, file = _LINE.search(text), _FILE.search(text)
    place = _place(file["file"], int(line["line"]), sources) if line and file else ""
    if cast := _CAST.search(text):
        kind = kinds.get(cast["column"], _KINDS.get(cast["kind"], cast["kind"].lower()))
        return wrong_cell(place, f"column {cast['column']!r} has {cast['value']!r}", words_of(kind, cast["value"]))
    if cells := _CELLS.search(text):
        return ragged_line(place, int(cells["given"]), int(cells["expected"]))
    if "Invalid unicode" in text and file:
        check_bytes(file["file"], "utf-8")
        return f"{place}: the line is not UTF-8; name the encoding of the source, such as latin-1."
    if "unterminated quote" in text or "Value with unterminated" in text:
        return unclosed_quote(place)
    for path, source in sources.items():
        # DuckDB names no file.
        if "state machine" in text and source.type == "csv":
            check_line_ends(path, source)
    if any(each in text for each in _LONG) and file and file["file"] in sources:
        check_cells(file["file"], sources[file["file"]])
        return long_line(place or file["file"])
    if json_file := _JSON.search(text):
        return _sentence_of_json(json_file["file"], text)
    if file:
        # It may be a cell of another type, whose bytes DuckDB does not print.
        check_bytes(file["file"], "utf-8")
    else:
        _check_pages(sources)
    return f"{place + ': ' if place else ''}{_CLASS.sub('', text.splitlines()[0])}"


def _check_pages(sources: Mapping[str, Source]) -> None:
    """Raises UserError for a Parquet file that is damaged behind its footer, as DuckDB does not name it."""
    for path in [path for path, source in sources.items() if source.type in ("parquet", "delta")]:
        try:
            with open_bytes(path) as opened:
                for _ in pq.ParquetFile(opened).iter_batches():
                    pass
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path} is damaged ({reason_of(error)[:200]}); write it again.") from error


def _place(file: str, row: int, sources: Mapping[str, Source]) -> str:
    """The file and the line; DuckDB counts rows, of which one may have several lines."""
    return f"{file}, line {line_of_row(file, sources[file], row) if file in sources else row}"


def _sentence_of_json(path: str, text: str) -> str:
    """The first line that is no JSON object, or the value that is not of its type."""
    if "maximum_object_size" in text:
        return f"{path}: a line has more than 16 MiB; shorten it."
    wrong = _WRONG_JSON.search(text)
    number = int(wrong["line"]) if wrong else None
    if line := first_no_object(path, number):
        return line
    if wrong is None:
        return f"{path}: {_CLASS.sub('', text.splitlines()[0])}"
    place, reason = f"{path}, line {wrong['line']}", wrong["reason"].rstrip(".")
    if cell := _WRONG_VALUE.fullmatch(reason):
        value = next(filter(None, cell.group("value", "other", "third")))
        kind = cell["kind"] or cell["other_kind"] or "ARRAY"
        what = {"numerical": "a number", "list": "a list", "ARRAY": "a list"}.get(kind) or WORDS.get(
            _KINDS.get(kind, ""), kind
        )
        column = _column_of_json(path, int(wrong["line"]), value)
        return wrong_cell(place, f"{column}{value}", what)
    return f"{place}: {reason}; correct it."


def first_no_object(path: str, last: int | None = None) -> str:
    """The sentence for the first line, up to a last one, that is no JSON object; empty if all are."""
    with suppress(UserError), open_bytes(path) as file:
        for number, line in enumerate(islice(file, last), start=1):
            place = f"{path}, line {number}: the line"
            try:
                value = json.loads(line.decode("utf-8-sig")) if line.strip() else {}
                json.dumps(value, ensure_ascii=False).encode()
            except json.JSONDecodeError as error:
                return f"{place} is no JSON ({error.msg} at character {error.pos}); correct it."
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                return f"{place} has the byte 0x{byte:02x}, which is not utf-8, as JSON is; convert the file."
            except UnicodeEncodeError:
                return f"{place} has half of a surrogate pair, which is no character; correct it."
            if not isinstance(value, dict):
                return f"{place} is {str(value)[:80]}, not an object in braces; correct it."
    return ""


def _column_of_json(path: str, line: int, value: str) -> str:
    """`column 'age' has `, or `the line has ` if the line does not tell."""
    with suppress(UserError, ValueError, StopIteration), open_bytes(path) as file:
        row = json.loads(next(islice(file, line - 1, None)))
        name = next(name for name, each in row.items() if value in json.dumps(each, ensure_ascii=False))
        return f"column {name!r} has "
    return "the line has "
