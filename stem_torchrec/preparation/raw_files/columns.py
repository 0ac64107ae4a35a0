"""The columns that the files of a source have, and that all of them have the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.preparation.raw_files.csv_text import header_of, open_bytes
from stem_torchrec.preparation.specs.checks import check_names
from stem_torchrec.preparation.specs.spec import ColumnType, Source
from stem_torchrec.runtime.errors import UserError, nearest, reason_of


@dataclass(frozen=True)
class Columns:
    """The columns of a file: those of CSV and JSON lines with their types, those of Parquet as its footer has them."""

    kinds: tuple[tuple[str, str], ...]
    types: Mapping[str, ColumnType] = field(default_factory=dict, compare=False)

    @property
    def without_type(self) -> set[str]:
        """The columns of Parquet's null type, as pandas and Polars write one that has no value in a part."""
        return {column for column, kind in self.kinds if kind == "null"}


def files_with_rows(files: Sequence[str], source: Source) -> list[str]:
    """The files without those of zero bytes, as Spark writes for a part without rows; all of them if all are so."""
    if source.type in ("parquet", "delta"):
        return list(files)
    full = [file for file in files if _size(file) != 0]
    return full or list(files)


def _size(file: str) -> int | None:
    store, path = fsspec.url_to_fs(file)
    try:
        size: int | None = store.size(path)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({reason_of(error)}).") from error
    return size


def columns_of(name: str, source: Source, files: Sequence[str]) -> dict[str, Columns]:
    """The columns of each file.

    Raises UserError if a file has other columns than the first, or `columns` names one that the first lacks.
    """
    if source.type in ("parquet", "delta"):
        return _columns_of_parquet(name, files, evolves=source.type == "delta")
    if source.type == "json" or not source.header:
        kinds = tuple((column, str(kind)) for column, kind in source.columns.items())
        return dict.fromkeys(files, Columns(kinds, source.columns))
    headers = {file: header_of(file, source) for file in files}
    for file, header in headers.items():
        if not header:
            raise UserError(f"{file} is empty; a CSV file begins with the names of its columns, or say header: false.")
    first, header = next(iter(headers.items()))
    for column in source.columns:
        if column not in header:
            raise UserError(f"sources[{name}].columns names {column!r}, which {first} lacks{_hint(column, header)}")
    for file, columns in headers.items():
        if columns != header:
            raise UserError(_drift(name, file, columns, first, header))
    types: dict[str, Any] = {column: source.columns.get(column, "text") for column in header}
    return dict.fromkeys(files, Columns(tuple(types.items()), types))


def _hint(column: str, header: Sequence[str]) -> str:
    others = [each for each in (",", "\t", ";", "|", "\x01") if len(header) == 1 and each in header[0]]
    if others:
        return f", as its first line has one cell, {header[0]!r}; is the delimiter {others[0]!r}?"
    return nearest(column, header) or f"; it has {', '.join(header)}."


def _drift(name: str, file: str, columns: Sequence[str], first: str, header: Sequence[str]) -> str:
    """Why a part does not fit the first one."""
    lacks, has = [each for each in header if each not in columns], [each for each in columns if each not in header]
    if lacks or has:
        words = [f"lacks the column {lacks[0]!r} of {first}"] if lacks else []
        words += [f"has the column {has[0]!r}, which {first} lacks"] if has else []
        difference = " and ".join(words)
    else:
        other = next(a for a, b in zip(columns, header, strict=True) if a != b)
        difference = f"has the column {other!r} in another place than {first}"
    return f"{file} {difference}; the files of sources[{name}] must have the same columns in the same order."


def _columns_of_parquet(name: str, files: Sequence[str], *, evolves: bool) -> dict[str, Columns]:
    """The columns of Parquet files; of a table that evolves, a file may lack some, which are null in it."""
    columns = {file: _footer(file) for file in files}
    first, names = next((file, [column for column, _ in each.kinds]) for file, each in columns.items())
    for file, each in columns.items():
        others = [column for column, _ in each.kinds]
        check_names(file, others)
        if set(others) != set(names) and not evolves:
            raise UserError(_drift(name, file, others, first, names).replace(" in the same order", ""))
    return columns


def _footer(file: str) -> Columns:
    try:
        if "://" in file:
            with open_bytes(file) as opened:
                schema = pq.read_schema(opened)
        else:
            schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} is no Parquet file, or damaged ({reason_of(error)[:200]}).") from error
    return Columns(tuple((each.name, _kind(each.type)) for each in schema))


def _kind(kind: pa.DataType) -> str:
    """A name for a type that is the same for types that an engine reads as one."""
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return f"list<{_kind(kind.value_type)}>"
    if pa.types.is_integer(kind) and kind != pa.uint64():
        return "int"
    if pa.types.is_floating(kind):
        return "float"
    return "text" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else str(kind)
