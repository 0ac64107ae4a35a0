"""The files of a source: which they are, and in which order."""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote

import fsspec

from stem_torchrec.preparation.raw_files.csv_text import PACKED
from stem_torchrec.preparation.raw_files.path_columns import NAMED
from stem_torchrec.preparation.specs.spec import Source
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.file_systems import STORES, check_package

_SKIPPED = (".", "_")
"""First characters of names that are left out: `_SUCCESS`, `_delta_log`, `.part-0.parquet.crc`."""
ENDINGS = {
    "csv": (".csv", ".tsv", ".txt", ".tab", ".psv"),
    "parquet": (".parquet", ".pq"),
    "json": (".json", ".jsonl", ".ndjson"),
    "delta": (),
}
"""Of the files of a folder that are read, by their type."""
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")
_DELTA_FEATURES = {"timestampNtz", "vacuumProtocolCheck", "v2Checkpoint"}
"""What a table may need of its reader; others, such as deletion vectors, change which rows of its files count."""


def find_files(name: str, source: Source) -> list[str]:
    """The files of a source, in the order of their paths.

    Raises UserError for a path or pattern without a file.

    Example::

        find_files("log", Source("raw/log_*.csv"))  # ["raw/log_1.csv", "raw/log_2.csv"]
    """
    if source.type == "delta":
        return _files_of_delta(name, source)
    files = []
    for pattern in source.patterns:
        matches = _matches(_expanded(pattern), source)
        if not matches:
            endings = ", ".join(ENDINGS[source.type])
            hint = f"a folder must have files that end in {endings}" if os.path.isdir(pattern) else "correct the path"
            raise UserError(f"sources[{name}].files is {pattern!r}, of which no file exists; {hint}.")
        files += matches
    for file in files:
        if file.lower().endswith(_ARCHIVES):
            raise UserError(f"{file} is an archive, which is not read; unpack it.")
    return list(dict.fromkeys(files))


def check_type(name: str, source: Source, files: Sequence[str]) -> None:
    """Raises UserError for a file of another type, by its name, that would be read as CSV."""
    for file in files if source.type == "csv" else ():
        kind = next((kind for kind in ("parquet", "json") if file.lower().endswith(ENDINGS[kind])), "")
        if kind:
            raise UserError(f"sources[{name}].type is csv, but {file} ends as {kind} does; say type: {kind}.")


def _expanded(pattern: str) -> str:
    if pattern.lower().startswith("file://"):
        return unquote(pattern[len("file://") :].removeprefix("localhost"))
    return os.path.expanduser(pattern)


def _matches(pattern: str, source: Source) -> list[str]:
    # `{part}` stands for any text, which is the value of the column part.
    pattern = NAMED.sub("*", pattern)
    if "://" in pattern:
        return _matches_in_store(pattern, source)
    try:
        paths = glob.glob(pattern, recursive=True)
    except ValueError as error:
        raise UserError(f"{pattern!r} is no path ({reason_of(error)}).") from error
    paths = [path for path in paths if not _is_marked(path, pattern)]
    return list(_data_files(paths, {each: _files_below(each) for each in paths if os.path.isdir(each)}, source))


def _matches_in_store(pattern: str, source: Source) -> list[str]:
    scheme = pattern.partition("://")[0]
    is_web = scheme in ("http", "https")
    try:
        if scheme in STORES:
            check_package(pattern)
        store, path = fsspec.url_to_fs(pattern)
        # A `?` begins the query of a URL.
        has_pattern = "*" in pattern if is_web else glob.has_magic(path)
        matches = store.glob(path) if has_pattern else [path] if store.exists(path) else []
        paths = [each for each in matches if not _is_marked(each, path)]
        below = {} if is_web else {each: store.find(each) for each in paths if store.isdir(each)}
    # Each store has errors of its own.
    except Exception as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{pattern} cannot be listed ({reason_of(error)[:300]}).") from error
    return [store.unstrip_protocol(each) for each in _data_files(paths, below, source)]


def _is_marked(path: str, pattern: str) -> bool:
    """Whether a path matches `**` by a folder whose name is that of no data, as `_temporary`."""
    before, stars, after = pattern.partition("**")
    between = path.split("/")[before.count("/") :][: -after.count("/") or None]
    return bool(stars) and any(part.startswith(_SKIPPED) for part in between)


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
    for ending in PACKED:
        name = name.removesuffix(ending)
    return name.endswith(ENDINGS[source.type]) and not any(part.startswith(_SKIPPED) for part in parts)


def _files_of_delta(name: str, source: Source) -> list[str]:
    try:
        import deltalake
    except ImportError as error:
        raise UserError(
            f"sources[{name}] is a Delta table, which needs deltalake; run: pip install 'stem_torchrec[delta]'"
        ) from error
    if not isinstance(source.files, str):
        raise UserError(f"sources[{name}].files must be the folder of one Delta table.")
    folder = _expanded(source.files)
    try:
        table = deltalake.DeltaTable(folder)
        protocol = table.protocol()
        files = [each.removeprefix("file://") for each in table.file_uris()]
    # Its errors have no common class.
    except Exception as error:
        raise UserError(f"{folder} cannot be read as a Delta table ({reason_of(error)[:300]}).") from error
    needed = set(protocol.reader_features or ()) - _DELTA_FEATURES
    if needed or protocol.min_reader_version == 2:
        words = ", ".join(sorted(needed)) or "column mapping"
        raise UserError(f"{folder} is a Delta table with {words}, which is not read; write it as Parquet.")
    return sorted(files)
