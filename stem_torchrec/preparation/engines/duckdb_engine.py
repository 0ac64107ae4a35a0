"""DuckDB as the engine: inside this process, out of core, with all that it keeps in Parquet files."""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import fsspec
import ibis
import ibis.expr.types as ir

from stem_torchrec.expressions.function import Engine as EngineName
from stem_torchrec.preparation.engines.duckdb_errors import sentences_of_duckdb
from stem_torchrec.preparation.engines.engine import NO_CELL, ROW
from stem_torchrec.preparation.raw_files.copies import readable
from stem_torchrec.preparation.raw_files.csv_text import has_whole_numbers_alone
from stem_torchrec.preparation.specs.spec import ColumnType, Source
from stem_torchrec.runtime.whole_file import whole_file

_TYPES: Mapping[ColumnType, str] = {
    # A BIGINT cell would round 1.5 to 2, so files are looked through before one is read; the reader of sources checks
    # that doubles are whole.
    "int": "DOUBLE",
    "float": "DOUBLE",
    "text": "VARCHAR",
    "bool": "BOOLEAN",
    # TIMESTAMP would leave out the +08:00 of a text.
    "timestamp": "TIMESTAMPTZ",
    "date": "DATE",
    "list<int>": "DOUBLE[]",
    "list<float>": "DOUBLE[]",
    "list<text>": "VARCHAR[]",
}
_NUMBER = "file_row_number"
"""DuckDB's name for the number of a row in its Parquet file."""
_FILE_BYTES = "512MB"
_PACKED = "COMPRESSION zstd, COMPRESSION_LEVEL 1"
"""Ids are no smaller at higher levels."""


class DuckDBEngine:
    """Keeps tables in `folder/NAME.parquet`, which is written twice as fast as a table of DuckDB's, and spills beside.

    Args:
        folder: exists, and belongs to this process.
        memory: limit of DuckDB's own memory, such as `1.2GB`; the process has about 0.3 GB besides.
        threads: processors to use.
    """

    name: EngineName = "duckdb"

    def __init__(self, folder: Path, *, memory: str, threads: int | None = None) -> None:
        settings = {} if threads is None else {"threads": threads}
        with sentences_of_duckdb():
            self._backend = ibis.duckdb.connect(
                memory_limit=memory,
                temp_directory=str(folder / "spill"),
                # Extensions come from a host that many machines cannot reach; what is needed is built in.
                autoinstall_known_extensions=False,
                autoload_known_extensions=False,
                **settings,
            )
            self._backend.raw_sql("SET TimeZone = 'UTC'")
            self._backend.raw_sql("SET enable_progress_bar = true")
            self._backend.raw_sql("SET enable_progress_bar_print = false")
        self._folder, self._views = folder, 0
        self._names: dict[str, str] = {}
        self._kinds: dict[str, str] = {}
        self._sources: dict[str, Source] = {}
        self._connection: duckdb.DuckDBPyConnection = self._backend.con

    def scan(self, files: Sequence[str], source: Source, types: Mapping[str, ColumnType]) -> ir.Table:
        """The rows of files; see Engine."""
        for scheme in {file.partition("://")[0] for file in files if "://" in file} - {"http", "https"}:
            if scheme not in self._connection.list_filesystems():
                self._connection.register_filesystem(fsspec.filesystem(scheme))
        paths = readable(files, source, self._folder / "copies")
        self._kinds |= {column: kind for column, kind in types.items() if kind == "int"}
        self._sources |= dict.fromkeys(files, source)
        self._names |= {path: file for path, file in paths.items() if path != file}
        has_ints = source.type == "csv" and "int" in types.values()
        whole = has_ints and all(has_whole_numbers_alone(path, source) for path in paths)
        with self._sentences():
            return self._view(_reader(list(paths), source, types, "BIGINT" if whole else _TYPES["int"]))

    def keep(self, name: str, table: ir.Table) -> ir.Table:
        """Keeps the rows of a query; see Engine."""
        file = self._folder / f"{quote(name, safe=' ')}.parquet"
        if not file.exists():
            # What is read once or twice is not worth packing.
            self._write(table, file, "COMPRESSION uncompressed")
        kept = self._view(f"read_parquet({_path(file)}, file_row_number = true)")
        return kept.drop(_NUMBER) if ROW in kept.columns else kept.rename({ROW: _NUMBER})

    def settled(self, name: str, table: ir.Table) -> ir.Table:
        """A view of the query, so that Ibis translates it once; see Engine."""
        return self._view(f"({self._backend.compile(table)})")

    def rows(self, table: ir.Table) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with self._sentences():
            return list(self._connection.execute(self._backend.compile(table)).fetchall())

    def write(self, table: ir.Table, folder: Path, *, row_group_size: int) -> None:
        """Writes the rows of a query; see Engine."""
        with self._sentences():
            self._backend.raw_sql(
                f"COPY ({self._backend.compile(table)}) TO {_text(folder)} (FORMAT parquet, {_PACKED}, "
                f"ROW_GROUP_SIZE {row_group_size}, FILE_SIZE_BYTES '{_FILE_BYTES}', FILENAME_PATTERN 'part-{{i}}')"
            )
        for file in folder.glob("part-*.parquet"):
            number = int(file.stem.removeprefix("part-"))
            file.rename(folder / f"part-{number:05}.parquet")

    def write_file(self, table: ir.Table, file: Path, *, row_group_size: int) -> None:
        """Writes the rows of a query as one file; see Engine."""
        self._write(table, file, f"{_PACKED}, ROW_GROUP_SIZE {row_group_size}")

    def _write(self, table: ir.Table, file: Path, options: str) -> None:
        with whole_file(file) as new, self._sentences():
            self._backend.raw_sql(f"COPY ({self._backend.compile(table)}) TO {_text(new)} (FORMAT parquet, {options})")

    def parquet(self, path: Path) -> ir.Table:
        """The rows of a Parquet file, or of a folder of such files."""
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        return self._view(f"read_parquet([{', '.join(map(_path, files))}])")

    def _sentences(self) -> AbstractContextManager[None]:
        return sentences_of_duckdb(self._names, self._kinds, self._sources)

    def _view(self, reader: str) -> ir.Table:
        self._views += 1
        rows = self._connection.execute(f"DESCRIBE SELECT * FROM {reader}").fetchall()
        # Ibis has no word for this type; its values are whole microseconds as those of the others.
        cast = [_name(name) for name, kind, *_ in rows if kind == "TIMESTAMPTZ_NS"]
        columns = "*" if not cast else f"* REPLACE ({', '.join(f'{each}::TIMESTAMP AS {each}' for each in cast)})"
        self._backend.raw_sql(f"CREATE TEMP VIEW view_{self._views} AS SELECT {columns} FROM {reader}")
        return self._backend.table(f"view_{self._views}", database=("temp", "main"))

    def progress(self) -> float | None:
        """The percentage of the query that runs; negative if none does."""
        return float(self._connection.query_progress())

    def close(self) -> None:
        """Ends the engine."""
        self._backend.disconnect()


def _reader(files: Sequence[str], source: Source, types: Mapping[str, ColumnType], whole: str) -> str:
    """The table function that reads the files, with whole numbers of CSV and JSON lines as a type of DuckDB's."""
    paths = f"[{', '.join(map(_path, files))}]"
    hive = {name: "BIGINT" if kind == "int" else _TYPES[kind] for name, kind in source.partitions.items()}
    partitions = f", hive_partitioning = true, hive_types = {_struct(hive)}" if hive else ", hive_partitioning = false"
    if source.type in ("parquet", "delta"):
        return f"read_parquet({paths}, union_by_name = true{partitions})"
    columns = _struct({name: whole if kind == "int" else _TYPES[kind] for name, kind in types.items()})
    if source.type == "json":
        return f"read_json({paths}, format = 'newline_delimited', records = true, columns = {columns}{partitions})"
    nulls = ", ".join(map(_text, source.nulls or [NO_CELL]))
    return (
        f"read_csv({paths}, auto_detect = false, columns = {columns}, header = {str(source.header).lower()}, "
        f"delim = {_text(source.delimiter)}, quote = {_text(source.quote)}, escape = {_text(source.quote)}, "
        f"nullstr = [{nulls}]{partitions})"
    )


def _struct(values: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{_text(name)}: {_text(value)}" for name, value in values.items()) + "}"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _path(file: object) -> str:
    """A file by its own name, as DuckDB takes `*`, `?` and `[` for patterns."""
    return _text(re.sub(r"[*?\[]", r"[\g<0>]", str(file)))


def _text(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
