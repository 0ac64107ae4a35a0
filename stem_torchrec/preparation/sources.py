"""Sources as tables of an engine: typed columns, with a missing value wherever the source has none."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from stem_torchrec.preparation.engine import Engine
from stem_torchrec.preparation.source_files import column_types, find_files, name_parts
from stem_torchrec.preparation.spec import ColumnType, Source
from stem_torchrec.runtime.errors import UserError, nearest

_WHOLE = r"^[+-]?[0-9]+([.]0*)?$"
"""Text of a whole number."""
_IBIS = {
    "int": "int64",
    "float": "float64",
    "text": "string",
    "bool": "boolean",
    "timestamp": "timestamp",
    "date": "date",
}
_EXACT = 2**53
"""Above it a double does not tell neighbouring whole numbers apart."""


def read_source(engine: Engine, name: str, source: Source, *, exact: bool = False) -> ir.Table:
    """The rows of a source, in the order of its files.

    Args:
        engine: reads the files.
        name: of the source, for errors.
        source: where and what they are.
        exact: reads whole numbers as text first, which takes longer, but knows those above 2^53.

    Raises UserError for a file that is missing, or has other columns than `source` names.
    """
    files = find_files(name, source)
    types = column_types(name, source, files)
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for file in files:
        groups.setdefault(tuple(name_parts(source, file).items()), []).append(file)
    tables = []
    for parts, members in groups.items():
        of_folders = {column: kind for column, kind in source.partitions.items() if column not in dict(parts)}
        table = _scanned(engine, replace(source, partitions=of_folders), members, types, exact=exact)
        constants = {
            part: ibis.literal(text).try_cast(_IBIS.get(source.partitions.get(part, "text"))) for part, text in parts
        }
        tables.append(table.mutate(**constants))
    table = ibis.union(*tables, distinct=False) if len(tables) > 1 else tables[0]
    for column in (*source.columns, *source.partitions):
        if column not in table.columns:
            hint = nearest(column, table.columns) or f"; it has {', '.join(table.columns)}."
            raise UserError(f"sources[{name}] names the column {column!r}, which {files[0]} lacks{hint}")
    return table


def _scanned(
    engine: Engine, source: Source, files: Sequence[str], types: Mapping[str, ColumnType], *, exact: bool
) -> ir.Table:
    as_text = source.type == "csv" and (source.trim or exact or engine.name == "spark")
    cells: dict[str, ColumnType] = dict.fromkeys(types, "text")
    table = engine.scan(files, replace(source, nulls=()) if as_text else source, cells if as_text else types)
    return table.select(
        **{
            column: _from_text(table[column], column, types[column], source)
            if as_text and column in types
            else _typed(table[column], column, types.get(column, "text"))
            for column in table.columns
        }
    )


def _typed(column: ir.Column, name: str, kind: ColumnType) -> ir.Value:
    """The column as one of the types of values."""
    kind_of_file = column.type()
    if kind == "int" and kind_of_file.is_floating():
        whole = (column == column.floor()) & (column.abs() <= _EXACT)
        return ibis.ifelse(
            whole | column.isnull(), column.cast(dt.int64), _refused(column.cast(str), name, kind, "int64")
        )
    if kind_of_file.is_integer():
        return column.cast(dt.int64)
    return column.cast(dt.float64) if kind_of_file.is_decimal() else column


def _from_text(cell: ir.StringColumn, name: str, kind: ColumnType, source: Source) -> ir.Value:
    """The value of a cell of CSV."""
    cell = cell.strip() if source.trim else cell
    cell = cell.isin(source.nulls).ifelse(ibis.null("string"), cell)
    if kind == "text":
        return cell
    if kind == "int":
        value = cell.re_search(_WHOLE).ifelse(cell.re_replace("[.]0*$", ""), ibis.null("string")).try_cast("int64")
    else:
        value = cell.try_cast(_IBIS[kind])
    return ibis.ifelse(value.notnull() | cell.isnull(), value, _refused(cell, name, kind, value.type()))


@ibis.udf.scalar.builtin(name="error")
def _error(text: str) -> str:
    """Ends the query with this text."""


def _refused(value: ir.Value, name: str, kind: str, result: Any) -> ir.Value:
    return _error(ibis.literal(f"cell\t{name}\t{kind}\t") + value).cast(result)
