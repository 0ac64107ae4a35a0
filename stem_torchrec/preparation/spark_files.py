"""Files as rows of Spark that know their places: Spark reads parts of files in any order."""

import os
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any
from urllib.parse import unquote

import fsspec

from stem_torchrec.preparation.engine import ROW
from stem_torchrec.preparation.engine_errors import bad_cell
from stem_torchrec.preparation.spark_errors import check_quotes
from stem_torchrec.preparation.spec import ColumnType, Source
from stem_torchrec.runtime.errors import UserError

_MIB = 2**20
_IN_PARTITION = 33
"""Bits of `monotonically_increasing_id` that count the rows of a partition."""
_NO_CELL = "\ue000"
"""Text that no cell has, as Spark wants one that means null."""
_NO_QUOTE = "\x00"
_SCHEME = r"^\w+:/*"
_SPARK: Mapping[ColumnType, str] = {
    "int": "bigint",
    "float": "double",
    "text": "string",
    "bool": "boolean",
    "timestamp": "timestamp_ntz",
    "date": "date",
}


class SparkFiles:
    """Reads files into frames with a column ROW, which rises through all files that it has read."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._first = 0
        """Where the next file begins, if all files lie one after another, in MiB."""

    def read(self, files: Sequence[str], source: Source, types: Mapping[str, ColumnType]) -> Any:
        """The rows of files with all cells of CSV and JSON lines as text; see Engine.scan.

        Costs one more pass over the text where cells may be in quotes, to see whether any has a line end.
        """
        from pyspark.sql import functions as F

        paths = [_path(file) for file in files]
        frame = self._reader(paths, source, types).load(paths)
        names = [name for name in frame.columns if name not in source.partitions]
        if source.type == "csv":
            # An empty cell is read as null.
            cells = [F.coalesce(_column(name), F.lit("")).alias(name) for name in names]
        else:
            cells = [_column(name) for name in names]
        places = ["_metadata.file_path", "_metadata.file_block_start", F.monotonically_increasing_id().alias("__id")]
        placed = frame.select(*cells, *places)
        known = F.broadcast(self._table_of(files, frame.inputFiles(), source))
        block = f"shiftleft(__first + shiftright(file_block_start, 20), {_IN_PARTITION})"
        row = f"{block} + (__id & {2**_IN_PARTITION - 1})"
        # Spark writes `file:/` here and `file:///` there.
        path = F.regexp_replace(placed["file_path"], _SCHEME, "/")
        joined = placed.join(known, path == known["__path"], "left")
        kept = [*names, *(name for name in known.columns if name in source.partitions)]
        return joined.select(*map(_column, kept), F.expr(row).alias(ROW))

    def _reader(self, paths: Sequence[str], source: Source, types: Mapping[str, ColumnType]) -> Any:
        # Without this, names of folders such as `date=2022-05-03` would become columns of types that Spark guesses.
        reader = self._session.read.option("recursiveFileLookup", True)
        if source.type in ("parquet", "delta"):
            return reader.format("parquet").option("mergeSchema", True)
        reader = reader.schema(_schema(types)).option("mode", "FAILFAST")
        if source.type == "json":
            return reader.format("json")
        return reader.format("csv").options(
            header=source.header,
            sep=source.delimiter,
            quote=source.quote or _NO_QUOTE,
            escape=source.quote or _NO_QUOTE,
            nullValue=_NO_CELL,
            encoding=source.encoding,
            # Otherwise a line with too many or too few cells is not noticed.
            columnPruning=False,
            maxColumns=100_000,
            multiLine=self._has_line_ends_in_cells(paths, source),
        )

    def _has_line_ends_in_cells(self, paths: Sequence[str], source: Source) -> bool:
        """Whether some line has an odd number of quotes; if not, Spark can read parts of a file at the same time."""
        from pyspark.sql import functions as F

        if not source.quote:
            return False
        lines = self._session.read.option("recursiveFileLookup", True).text(list(paths))
        quotes = F.length("value") - F.length(F.translate("value", source.quote, ""))
        sums = lines.where(quotes % 2 == 1).groupBy(F.col("_metadata.file_path")).count().collect()
        for path, odd in sums:
            if odd % 2:
                check_quotes(unquote(path).removeprefix("file://"), source)
        return bool(sums)

    def _table_of(self, files: Sequence[str], paths: Sequence[str], source: Source) -> Any:
        """A row for each file: its name as Spark has it, where it begins, and the columns in its folders' names."""
        by_name = {unquote(_name(path)): path for path in paths}
        names = [name for name in source.partitions if all(f"/{name}=" in file for file in files)]
        rows = []
        for file in files:
            path = by_name.get(_name(_path(file, escaped=False)))
            # Spark leaves out names that begin with `_` or a point.
            if path is None:
                raise UserError(f"Spark does not read {file}, whose name means that it holds no rows; rename it.")
            parts = [_literal(_part(name, file), source.partitions[name], name, file) for name in names]
            rows.append(f"({', '.join([_text(_name(path)), f'{self._first}L', *parts])})")
            self._first += _size(file) // _MIB + 1
        columns = ", ".join(["__path", "__first", *(f"`{name.replace('`', '``')}`" for name in names)])
        return self._session.sql(f"SELECT * FROM VALUES {', '.join(rows)} AS files ({columns})")


def _schema(types: Mapping[str, ColumnType]) -> Any:
    from pyspark.sql.types import ArrayType, StringType, StructType

    schema = StructType()
    for name, kind in types.items():
        schema.add(name, ArrayType(StringType()) if kind.startswith("list") else StringType())
    return schema


def _column(name: str) -> Any:
    from pyspark.sql import functions as F

    return F.col(f"`{name.replace('`', '``')}`")


def _path(file: str, *, escaped: bool = True) -> str:
    """A file as Spark takes it; it reads some characters of a path as a pattern."""
    path = file if "://" in file else f"file://{os.path.abspath(file)}"
    return re.sub(r"([\[\]{}*?\\])", r"\\\1", path) if escaped else path


def _name(path: str) -> str:
    """A path without its scheme, which Spark may write otherwise: `file:/a` or `s3a://a`."""
    return re.sub(_SCHEME, "/", path)


def _size(file: str) -> int:
    if "://" not in file:
        return os.path.getsize(file)
    store, path = fsspec.url_to_fs(file)
    return int(store.size(path) or 0)


def _part(name: str, file: str) -> str | None:
    """The value of a column in the names of folders: that of `date` in `date=2022-05-03/`."""
    value = unquote(file.rsplit(f"/{name}=", 1)[1].split("/", 1)[0])
    return None if value == "__HIVE_DEFAULT_PARTITION__" else value


def _literal(value: str | None, kind: ColumnType, name: str, file: str) -> str:
    """The value as Spark's SQL writes it."""
    checks: dict[str, Any] = {"int": int, "float": float, "date": date.fromisoformat}
    try:
        checks.get(kind, str)(value or "0001-01-01" if kind == "date" else value or "0")
    except ValueError as error:
        raise UserError(f"{file}: {bad_cell(name, kind, str(value))}") from error
    return f"CAST({'NULL' if value is None else _text(value)} AS {_SPARK[kind]})"


def _text(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
