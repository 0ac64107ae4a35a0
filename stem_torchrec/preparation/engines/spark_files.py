"""Files as rows of Spark that know their places: Spark reads parts of files in any order."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import fsspec

from stem_torchrec.preparation.engines.engine import NO_CELL, ROW
from stem_torchrec.preparation.engines.spark_errors import without_scheme
from stem_torchrec.preparation.raw_files.csv_text import check_bytes, check_cells
from stem_torchrec.preparation.raw_files.path_columns import NO_VALUE
from stem_torchrec.preparation.specs.spec import ColumnType, Source
from stem_torchrec.runtime.errors import UserError

_MIB = 2**20
_IN_PARTITION = 33
"""Bits of `monotonically_increasing_id` that count the rows of a partition."""
_NO_QUOTE = "\x00"
_SPARK: Mapping[ColumnType, str] = {
    "int": "bigint",
    "float": "double",
    "text": "string",
    "bool": "boolean",
    "timestamp": "timestamp",
    "date": "date",
}


class SparkFiles:
    """Reads files into frames with a column ROW, which rises through all files that it has read."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._first = 0
        """Where the next file begins, if all files lie one after another, in MiB."""

    def read(self, files: Mapping[str, str], source: Source, types: Mapping[str, ColumnType]) -> Any:
        """The rows of files with all cells of CSV and JSON lines as text; see Engine.scan.

        Costs one more pass over text, to see whether it is UTF-8, and whether a cell in quotes has a line end.

        Args:
            files: what the user calls each file, in order.
            source: how to read them.
            types: of the columns of CSV and JSON lines.
        """
        from pyspark.sql import functions as F

        paths = [spark_path(file) for file in files]
        frame = self._reader(files, source, types).load(paths)
        names = [name for name in frame.columns if name not in source.partitions]
        if source.type == "csv":
            # An empty cell is read as null.
            cells = [F.coalesce(_column(name), F.lit("")).alias(name) for name in names]
        else:
            cells = [_column(name) for name in names]
        places = ["_metadata.file_path", "_metadata.file_block_start", F.monotonically_increasing_id().alias("__id")]
        placed = frame.select(*cells, *places)
        known = F.broadcast(self._table_of(files, frame.inputFiles(), source))
        # Spark writes `file:/` here and `file:///` there.
        path = F.regexp_replace(placed["file_path"], r"^\w+:/*", "/")
        joined = placed.join(known, path == known["__path"], "left")
        kept = [*names, *(name for name in known.columns if name in source.partitions)]
        block = f"shiftleft(__first + shiftright(file_block_start, 20), {_IN_PARTITION})"
        row = f"{block} + (__id & {2**_IN_PARTITION - 1})"
        return joined.select(*map(_column, kept), F.expr(row).alias(ROW))

    def _reader(self, files: Mapping[str, str], source: Source, types: Mapping[str, ColumnType]) -> Any:
        # Without this, names of folders such as `date=2022-05-03` would become columns of types that Spark guesses.
        reader = self._session.read.option("recursiveFileLookup", True)
        if source.type in ("parquet", "delta"):
            return reader.format("parquet").option("mergeSchema", True)
        has_line_ends = self._check_text(files, source)
        reader = reader.schema(_schema(types)).option("mode", "FAILFAST")
        if source.type == "json":
            return reader.format("json")
        return reader.format("csv").options(
            header=source.header,
            sep=source.delimiter,
            quote=source.quote or _NO_QUOTE,
            escape=source.quote or _NO_QUOTE,
            nullValue=NO_CELL,
            # Otherwise a line with too many or too few cells is not noticed.
            columnPruning=False,
            maxColumns=100_000,
            multiLine=has_line_ends,
        )

    def _check_text(self, files: Mapping[str, str], source: Source) -> bool:
        """Whether a line has an odd number of quotes; if none has, Spark can read parts of a file at the same time.

        Raises UserError for bytes that are not UTF-8, which Spark would replace, and for a quote that is not closed.
        """
        from pyspark.sql import functions as F

        lines = self._session.read.option("recursiveFileLookup", True).text([spark_path(file) for file in files])
        quotes = F.lit(0)
        if source.type == "csv" and source.quote:
            quotes = F.length("value") - F.length(F.translate("value", source.quote, ""))
        marked = lines.select(
            "_metadata.file_path", (quotes % 2).alias("odd"), F.expr("is_valid_utf8(value)").alias("text")
        )
        sums = marked.groupBy("file_path").agg(F.sum("odd"), F.sum(F.expr("int(not text)"))).collect()
        by_name = {without_scheme(spark_path(file, escaped=False)): file for file in files}
        for path, odd, wrong in sums:
            file = by_name[without_scheme(unquote(path))]
            if wrong:
                check_bytes(file, "utf-8")
            if odd % 2:
                check_cells(files[file], source)
        return any(odd for _, odd, _ in sums)

    def _table_of(self, files: Mapping[str, str], paths: Sequence[str], source: Source) -> Any:
        """A row for each file: its name as Spark has it, where it begins, and the columns in its folders' names."""
        by_name = {without_scheme(unquote(path)): without_scheme(path) for path in paths}
        rows = []
        for read, file in files.items():
            path = by_name.get(without_scheme(spark_path(read, escaped=False)))
            # Spark leaves out names that begin with `_` or a point.
            if path is None:
                raise UserError(f"Spark does not read {file}, whose name means that it holds no rows; rename it.")
            parts = [_literal(_part(name, file), kind) for name, kind in source.partitions.items()]
            rows.append(f"({', '.join([_text(path), f'{self._first}L', *parts])})")
            self._first += _size(read) // _MIB + 1
        columns = ", ".join(["__path", "__first", *(f"`{name.replace('`', '``')}`" for name in source.partitions)])
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


def spark_path(file: str, *, escaped: bool = True) -> str:
    """A file as Spark takes it; to read, it takes some characters of a path for a pattern unless they are escaped."""
    path = file if "://" in file else f"file://{os.path.abspath(file)}"
    return re.sub(r"([\[\]{}*?\\])", r"\\\1", path) if escaped else path


def _size(file: str) -> int:
    if "://" not in file:
        return os.path.getsize(file)
    store, path = fsspec.url_to_fs(file)
    return int(store.size(path) or 0)


def _part(name: str, file: str) -> str | None:
    """The value of a column in the names of folders: that of `date` in `date=2022-05-03/`."""
    value = unquote(file.rsplit(f"/{name}=", 1)[1].split("/", 1)[0])
    return None if value == NO_VALUE else value


def _literal(value: str | None, kind: ColumnType) -> str:
    """The value as Spark's SQL writes it."""
    return f"CAST({'NULL' if value is None else _text(value)} AS {_SPARK[kind]})"


def _text(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
