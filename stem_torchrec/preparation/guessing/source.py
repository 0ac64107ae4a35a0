"""The source of raw files: how they are written, the types of their columns, and a sample of their rows."""

import glob
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import ibis.expr.types as ir

from stem_torchrec.preparation.engines.duckdb_errors import first_no_object
from stem_torchrec.preparation.engines.engine import ROW, Engine, in_order
from stem_torchrec.preparation.guessing.column_types import guess_types
from stem_torchrec.preparation.guessing.dialect import Dialect, first_text, guess_dialect
from stem_torchrec.preparation.guessing.inputs import files_of, partitions_of
from stem_torchrec.preparation.rows.sources import read_source
from stem_torchrec.preparation.specs.spec import ColumnType, Source
from stem_torchrec.runtime.errors import UserError, reason_of

SAMPLE_ROWS = 200_000
"""Rows that the guess looks at."""
_SAMPLE_FILES = 10
_JSON_TYPES: Mapping[str, ColumnType] = {
    **dict.fromkeys(("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"), "int"),
    **dict.fromkeys(("FLOAT", "DOUBLE"), "float"),
    **dict.fromkeys(("VARCHAR", "UUID", "UBIGINT", "HUGEINT", "UHUGEINT", "TIME"), "text"),
    "BOOLEAN": "bool",
    "TIMESTAMP": "timestamp",
    "DATE": "date",
    "BIGINT[]": "list<int>",
    "DOUBLE[]": "list<float>",
    "VARCHAR[]": "list<text>",
}


@dataclass(frozen=True)
class RawSource:
    """Raw files as a spec has them."""

    source: Source
    files: list[str]
    remarks: dict[str, str]
    """What is not obvious about the type of a column."""
    unread: dict[str, str]
    """Columns that cannot be read, with the reason."""
    is_whole: bool
    """Whether the sample has all rows."""


def guess_source(
    engine: Engine, inputs: Sequence[str], *, columns: Sequence[str] = (), header_from: str = ""
) -> tuple[RawSource, ir.Table]:
    """The source and a sample of its rows, with types.

    Args:
        engine: keeps the sample.
        inputs: paths, folders and patterns.
        columns: names of the columns of CSV without a header.
        header_from: a file whose first line has them.

    Raises UserError for files that cannot be read.
    """
    source, files = files_of(inputs)
    if header_from:
        columns = _names_in(header_from)
    if columns and source.type != "csv":
        raise UserError(f"--columns names the columns of CSV, but {files[0]} is {source.type}, which has names itself.")
    kinds = {name: _partition_type(values) for name, values in partitions_of(files).items()}
    source = replace(source, partitions=kinds)
    unread: dict[str, str] = {}
    remarks: dict[str, str] = {}
    if source.type == "csv":
        source, remarks = _csv_source(engine, source, files, columns)
    elif source.type == "json":
        types, unread = _json_types(files[0])
        source = replace(source, columns={name: kind for name, kind in types.items() if name not in kinds})
    sample, is_whole = _sample(engine, source, files, "sample")
    whole = _whole_floats(engine, sample) if source.type == "parquet" else {}
    if whole:
        # Pandas writes whole numbers with missing ones as floats.
        source = replace(source, columns=whole)
        sample, is_whole = _sample(engine, source, files, "sample of ints")
    return RawSource(source, files, remarks, unread, is_whole), sample


def _names_in(path: str) -> list[str]:
    text = first_text(path).splitlines()[0]
    return [name.strip().strip('"') for name in text.split(guess_dialect(f"{text}\n{text}\n", path).delimiter)]


def _partition_type(values: Sequence[str]) -> ColumnType:
    return "int" if all(value.isdecimal() and not value.startswith("0") for value in values) else "text"


def _csv_source(
    engine: Engine, source: Source, files: Sequence[str], columns: Sequence[str]
) -> tuple[Source, dict[str, str]]:
    dialect = guess_dialect(first_text(files[0]), files[0])
    names, header = _column_names(dialect, columns, files[0])
    source = replace(source, header=header, delimiter=dialect.delimiter, quote=dialect.quote, trim=dialect.trim)
    texts: dict[str, ColumnType] = dict.fromkeys(names, "text")
    read = replace(source, nulls=(), columns=texts, trim=True, partitions={})
    tables = [read_source(engine, "log", replace(read, files=file)).limit(rows) for file, rows in _parts(files)]
    cells = engine.keep("cells", in_order(tables))
    types, nulls, remarks = guess_types(engine, cells, names)
    return replace(source, columns=types, nulls=nulls), remarks


def _column_names(dialect: Dialect, columns: Sequence[str], file: str) -> tuple[list[str], bool]:
    """The names of the columns, and whether the file has them in its first line."""
    names, header = list(columns), dialect.header is not None and (not columns or tuple(columns) == dialect.header)
    if not names:
        names = list(dialect.header or [f"col{i}" for i in range(dialect.width)])
    if len(names) != dialect.width:
        raise UserError(f"--columns names {len(names)} columns, but {file} has {dialect.width}; name all of them.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"--columns names {twice!r} twice; give each column a name of its own.")
    return names, header


def _json_types(file: str) -> tuple[dict[str, ColumnType], dict[str, str]]:
    """The types of the fields of JSON lines, and the fields that have none, by the first lines."""
    text = first_text(file)
    if text.lstrip().startswith("["):
        raise UserError(f"{file} is one JSON list, but must have an object on each line; write it so.")
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        path = Path(folder) / "sample.json"
        path.write_text(text)
        reader = f"read_json('{path}', format = 'newline_delimited', sample_size = -1)"
        try:
            described = connection.execute(f"DESCRIBE SELECT * FROM {reader}").fetchall()
            types = {name: _JSON_TYPES.get(kind) for name, kind, *_ in described}
            for name in [name for name, kind in types.items() if kind == "int"]:
                column = '"' + name.replace('"', '""') + '"'
                greatest = connection.execute(f"SELECT max(abs({column}::HUGEINT)) FROM {reader}").fetchall()[0][0]
                if greatest is not None and greatest > 2**53:
                    types[name] = "text"
        except duckdb.Error as error:
            reason = first_no_object(file) or f"{file} cannot be read as JSON lines ({reason_of(error)[:200]})."
            raise UserError(reason) from error
    unread = {name: f"{kind.lower()[:40]}, which no feature takes" for name, kind, *_ in described if not types[name]}
    return {name: kind for name, kind in types.items() if kind}, unread


def _parts(files: Sequence[str]) -> list[tuple[str, int]]:
    """Some files, with the number of rows to take from each."""
    step = -(-len(files) // _SAMPLE_FILES)
    chosen = list(files)[::step]
    return [(glob.escape(file) if "://" not in file else file, SAMPLE_ROWS // len(chosen)) for file in chosen]


def _whole_floats(engine: Engine, sample: ir.Table) -> dict[str, ColumnType]:
    """The columns of floats that are all whole numbers."""
    names = [name for name, kind in sample.schema().items() if kind.is_floating()]
    if not names:
        return {}
    odd = {
        str(i): ((sample[name] != sample[name].floor()) | (sample[name].abs() > 2**53)).sum().fill_null(1)
        for i, name in enumerate(names)
    }
    [row] = engine.rows(sample.aggregate(**odd))
    return {name: "int" for name, number in zip(names, row, strict=True) if not number}


def _sample(engine: Engine, source: Source, files: Sequence[str], name: str) -> tuple[ir.Table, bool]:
    """The first rows of some files, and whether these are all rows."""
    parts = _parts(files)
    tables = []
    for file, rows in parts:
        table = read_source(engine, "log", replace(source, files=file))
        # One row more than is wanted tells that there are more.
        tables.append(table.drop(*[column for column in (ROW,) if column in table.columns]).limit(rows + 1))
    sample = engine.keep(name, in_order(tables))
    [(rows,)] = engine.rows(sample.aggregate(rows=sample.count()))
    if not rows:
        raise UserError(f"{files[0]} has no rows; give files with some.")
    return sample, len(parts) == len(files) and rows <= min(count for _, count in parts)
