"""Sources as tables of an engine: typed columns, with a missing value wherever the source has none."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from stem_torchrec.preparation.engine import Engine
from stem_torchrec.preparation.source_files import column_types, find_files
from stem_torchrec.preparation.spec import ColumnType, Source
from stem_torchrec.runtime.errors import UserError

_WHOLE = r"^[+-]?[0-9]+([.]0*)?$"
"""Text of a whole number."""
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
    types: Mapping[str, ColumnType] = column_types(name, source, files)
    as_text = source.type == "csv" and (source.trim or exact or engine.name == "spark")
    cells: dict[str, ColumnType] = dict.fromkeys(types, "text")
    table = engine.scan(files, replace(source, nulls=()) if as_text else source, cells if as_text else types)
    missing = {*source.columns, *source.partitions} - set(table.columns)
    if missing:
        raise UserError(f"sources[{name}].columns names {min(missing)!r}, which {files[0]} lacks.")
    columns = {}
    for column in table.columns:
        if as_text and column in types:
            columns[column] = _from_text(table[column], column, types[column], source)
        else:
            columns[column] = _typed(table[column], column, types.get(column, "text"))
    return table.select(**columns)


def _typed(column: ir.Column, name: str, kind: ColumnType) -> ir.Value:
    """The column as one of the types of values."""
    kind_of_file = column.type()
    if kind == "int" and kind_of_file.is_floating():
        whole = (column == column.floor()) & (column.abs() <= _EXACT)
        return ibis.ifelse(whole | column.isnull(), column.cast(dt.int64), _refused(column.cast(str), name, kind, "int64"))
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
        value = cell.try_cast({"float": "float64", "bool": "boolean"}.get(kind, kind))
    return ibis.ifelse(value.notnull() | cell.isnull(), value, _refused(cell, name, kind, value.type()))


@ibis.udf.scalar.builtin(name="error")
def _error(text: str) -> str:
    """Ends the query with this text."""


def _refused(value: ir.Value, name: str, kind: str, result: Any) -> ir.Value:
    return _error(ibis.literal(f"cell\t{name}\t{kind}\t") + value).cast(result)
