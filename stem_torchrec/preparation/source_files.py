"""The files of a source: which they are, in which order, and the columns that they have."""

import csv
import glob
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fsspec

from stem_torchrec.preparation.spec import ColumnType, Source
from stem_torchrec.runtime.errors import UserError, nearest, reason_of

_SKIPPED = (".", "_")
"""First characters of names that are left out: `_SUCCESS`, `_delta_log`, `.part-0.parquet.crc`."""
_ENDINGS = {
    "csv": (".csv", ".tsv", ".txt"),
    "parquet": (".parquet", ".pq"),
    "json": (".json", ".jsonl", ".ndjson"),
    "delta": (),
}
_NAMED = re.compile(r"\{(\w+)\}")
_PACKED = (".gz", ".zst", ".bz2", ".xz")


def find_files(name: str, source: Source) -> list[str]:
    """The files of a source, in the order of their paths.

    Raises UserError for a path or pattern without a file.

    Example::

        find_files("log", Source("raw/log_*.csv"))  # ["raw/log_1.csv", "raw/log_2.csv"]
    """
    if source.type == "delta":
        return _files_of_delta(name, source)
    files = []
    for pattern in [source.files] if isinstance(source.files, str) else source.files:
        matches = _matches(os.path.expanduser(pattern), source)
        if not matches:
            raise UserError(f"sources[{name}].files is {pattern!r}, of which no file exists; correct the path.")
        files += matches
    return files


def _matches(pattern: str, source: Source) -> list[str]:
    # `{part}` stands for any text, which is the value of the column part.
    pattern = _NAMED.sub("*", pattern)
    if "://" in pattern:
        store, path = fsspec.url_to_fs(pattern)
        try:
            paths = store.glob(path) if glob.has_magic(path) else [path] if store.exists(path) else []
            below = {each: store.find(each) for each in paths if store.isdir(each)}
        except OSError as error:
            raise UserError(f"{pattern} cannot be listed ({reason_of(error)}).") from error
        files = [store.unstrip_protocol(each) for each in _data_files(paths, below, source)]
    else:
        paths = glob.glob(pattern, recursive=True)
        files = _data_files(paths, {each: _files_below(each) for each in paths if os.path.isdir(each)}, source)
    return list(dict.fromkeys(files))


def _data_files(paths: Sequence[str], below: Mapping[str, Sequence[str]], source: Source) -> Iterator[str]:
    """The files among some paths, and those in the folders among them that have rows by their names."""
    for path in sorted(paths):
        yield from [each for each in below[path] if _is_data(each, path, source)] if path in below else [path]


def _files_below(folder: str) -> list[str]:
    return sorted(os.path.join(path, name) for path, _, names in os.walk(folder) for name in names)


def _is_data(path: str, folder: str, source: Source) -> bool:
    """Whether a file in a folder holds rows, by its name."""
    parts = path.removeprefix(folder).strip("/").split("/")
    name = parts[-1].lower()
    for ending in _PACKED:
        name = name.removesuffix(ending)
    return name.endswith(_ENDINGS[source.type]) and not any(part.startswith(_SKIPPED) for part in parts)


def _files_of_delta(name: str, source: Source) -> list[str]:
    try:
        import deltalake
    except ImportError as error:
        raise UserError(
            f"sources[{name}] is a Delta table, which needs deltalake; run: pip install 'stem_torchrec[delta]'"
        ) from error
    if not isinstance(source.files, str):
        raise UserError(f"sources[{name}].files must be the folder of one Delta table.")
    try:
        return sorted(deltalake.DeltaTable(source.files).file_uris())
    # Its errors have no common class.
    except Exception as error:
        raise UserError(f"{source.files} cannot be read as a Delta table ({reason_of(error)}).") from error


def column_types(name: str, source: Source, files: Sequence[str]) -> dict[str, ColumnType]:
    """The types of the columns of CSV or JSON lines, in the order of the files; a column without a type is text.

    Raises UserError if a part has other columns than the first, or `columns` names one that they lack.
    """
    if source.type != "csv" or not source.header:
        return dict(source.columns)
    first, *parts = files
    header = _header(first, source)
    for part in parts:
        columns = _header(part, source)
        if columns != header:
            other = next((a for a, b in zip(columns, header, strict=False) if a != b), None)
            raise UserError(
                f"{part} has the columns {', '.join(columns)}, but {first} has {', '.join(header)}"
                f"{f', so {other!r} stands in another place' if other in header else ''}; the parts of "
                f"sources[{name}] must have the same columns in the same order."
            )
    for column in source.columns:
        if column not in header:
            hint = nearest(column, header) or f"; it has {', '.join(header)}."
            raise UserError(f"sources[{name}].columns names {column!r}, which {first} lacks{hint}")
    types: dict[str, Any] = {column: source.columns.get(column, "text") for column in header}
    return types


def _header(path: str, source: Source) -> list[str]:
    """The first line of a CSV file."""
    try:
        with fsspec.open(path, "rb", compression="infer") as file:
            # Without `newline` a line break inside quotes would end the line.
            text = io.TextIOWrapper(file, encoding=source.encoding.replace("utf-8", "utf-8-sig"), newline="")
            quoting = csv.QUOTE_MINIMAL if source.quote else csv.QUOTE_NONE
            reader = csv.reader(text, delimiter=source.delimiter, quotechar=source.quote or None, quoting=quoting)
            header = next(reader, [])
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}).") from error
    if not header:
        raise UserError(f"{path} is empty; a CSV file begins with the names of its columns, or say header: false.")
    names = [name.strip() for name in header]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path} names the column {twice!r} twice; give its columns names of their own.")
    return names


def name_parts(source: Source, file: str) -> dict[str, str]:
    """The columns in the name of a file, by the `{part}` of the pattern that it matches.

    Example::

        name_parts(Source("raw/log_{part}.csv"), "raw/log_train.csv")  # {"part": "train"}
    """
    for pattern in [source.files] if isinstance(source.files, str) else source.files:
        names = _NAMED.findall(pattern)
        text = "".join(
            f"(?P<{piece}>[^/]*)" if i % 2 else re.escape(piece).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
            for i, piece in enumerate(_NAMED.split(pattern))
        )
        match = re.search(f"{text}$", file) if names else None
        if match is not None:
            return match.groupdict()
    return {}
