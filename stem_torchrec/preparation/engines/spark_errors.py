"""What Spark raises, in one sentence as DuckDB's: with the file, the line, the value and the fix."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import unquote

from stem_torchrec.preparation.engines.engine import refused_cell
from stem_torchrec.preparation.raw_files.csv_text import check_cells
from stem_torchrec.preparation.specs.spec import Source
from stem_torchrec.runtime.errors import UnwritableError, UserError

_STOP = " SQLSTATE: P0001"
"""Stands behind the text that a query ends with."""
_FILE = re.compile(r"(?:reading file|footer for file:|path does not exist:) *(?P<file>\S*[^\s.])", re.IGNORECASE)
_CLASS = re.compile(r"\[(?P<name>[A-Z_.0-9]+)\] (?P<text>[^\n]*)")
_NO_ROOM = ("No space left", "DiskErrorException")
_NO_MEMORY = ("OutOfMemoryError", "Java heap space", "SparkOutOfMemoryError", "GC overhead")


Scanned = Mapping[str, tuple[str, Source]]


@contextmanager
def sentences_of_spark(scanned: Scanned) -> Iterator[None]:
    """Raises the errors of Spark as UserError, or as UnwritableError where a disk is full.

    Args:
        scanned: what the user calls the files that have been read, with their sources.
    """
    from py4j.protocol import Py4JError  # type: ignore[import-untyped]
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as error:
        # With Java's stack and all causes, of which the last one tells what happened.
        text = str(error)
        if any(words in text for words in _NO_ROOM):
            raise UnwritableError("the disk is full (Spark has no space left); make room.") from error
        if any(words in text for words in _NO_MEMORY):
            raise UserError("the memory of Spark does not suffice; give more with --memory.") from error
        if _STOP in text and (cell := refused_cell(text.partition(_STOP)[0])):
            raise cell from error
        raise UserError(_sentence(text, scanned)) from error


def _sentence(text: str, scanned: Scanned) -> str:
    match = _FILE.search(text)
    file, source = _named(match["file"], scanned) if match else ("", None)
    if file and "MALFORMED" in text:
        return _wrong_line(file, source)
    if "PATH_NOT_FOUND" in text or "FileNotFoundException" in text:
        return f"{file or 'a file'} does not exist any more; correct the path."
    if "is not a Parquet file" in text or "CANNOT_READ_FILE_FOOTER" in text:
        return f"{file or 'a file'} cannot be read as Parquet; correct the type of the source."
    if "TIMESTAMP(NANOS" in text:
        return f"{file or 'a file'} has times in nanoseconds, which Spark does not read; write microseconds."
    if "CANNOT_MERGE" in text:
        return "the parts of a source have a column with different types; write them with the same type."
    causes = _CLASS.findall(text)
    reason = causes[-1][1].split(" SQLSTATE")[0] if causes else text.strip().splitlines()[0]
    return f"Spark cannot do it ({reason.strip().rstrip('.')[:300]})."


def _named(uri: str, scanned: Scanned) -> tuple[str, Source | None]:
    """The file as the user calls it, and its source."""
    path = without_scheme(unquote(uri))
    return next(
        (
            each
            for read, each in scanned.items()
            if without_scheme(read if "://" in read else os.path.abspath(read)) == path
        ),
        (path, None),
    )


def without_scheme(path: str) -> str:
    """A path or URL without its scheme, which Spark may write otherwise: `file:/a` or `s3a://a`."""
    return re.sub(r"^\w+:/*", "/", path)


def _wrong_line(file: str, source: Source | None) -> str:
    """Reads a file until the line that has stopped Spark, which does not tell its number."""
    if source is None or source.type == "json":
        return f"{file} has a line that is not JSON, or not of the types of its columns; correct it."
    check_cells(file, source)
    return f"{file} has a line that cannot be read; correct it."
