"""Sources as tables of an engine: typed columns, with a missing value wherever the source has none."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from stem_torchrec.expressions import engine_functions
from stem_torchrec.expressions.function import Engine as EngineName
from stem_torchrec.preparation.engine import ROW, Engine
from stem_torchrec.preparation.source_files import column_types, find_files, name_parts
from stem_torchrec.preparation.spec import ColumnType, Source
from stem_torchrec.runtime.errors import UserError, nearest

_PATTERNS = {
    "int": r"^[+-]?[0-9]+([.]0*)?\z",
    "float": r"(?i)^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)(e[+-]?[0-9]+)?\z|^[+-]?(nan|inf|infinity)\z",
    "bool": r"(?i)^(true|false|t|f|yes|no|y|n|1|0)\z",
    "date": r"^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}\z",
    # Both engines leave out the offset of any other time zone.
    "timestamp": r"^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([ T][0-9:.]+)?( ?(Z|UTC|[+-]00(:?00)?))?\z",
}
"""Texts that may be values of a type. `$` would also match before a line end in Java."""
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
    as_text = source.type == "csv" and (source.trim or exact)
    cells: dict[str, ColumnType] = dict.fromkeys(types, "text")
    table = engine.scan(files, replace(source, nulls=()) if as_text else source, cells if as_text else types)
    # An engine that numbers the rows of files reads texts only.
    as_text |= ROW in table.columns and source.type in ("csv", "json")
    reader = _Cells(engine.name, source)
    return table.select(
        **{
            column: table[column]
            if column == ROW
            else reader.from_text(table[column], column, types[column])
            if as_text and column in types
            else reader.typed(table[column], column, types.get(column, "text"))
            for column in table.columns
        }
    )


class _Cells:
    """Reads the columns of a source as values, and ends the query at a cell that is none."""

    def __init__(self, engine: EngineName, source: Source) -> None:
        self._engine, self._source = engine, source

    def typed(self, column: ir.Column, name: str, kind: ColumnType) -> ir.Value:
        """The column as one of the types of values."""
        kind_of_file = column.type()
        if kind == "int" and kind_of_file.is_floating():
            whole = (column == column.floor()) & (column.abs() <= _EXACT)
            refused = self._refused(column.cast(str), name, kind, "int64")
            return ibis.ifelse(whole | column.isnull(), column.cast(dt.int64), refused)
        if kind_of_file.is_integer():
            return column.cast(dt.int64)
        return column.cast(dt.float64) if kind_of_file.is_decimal() else column

    def from_text(self, cell: ir.Value, name: str, kind: ColumnType) -> ir.Value:
        """The value of a cell of CSV or JSON lines."""
        if kind.startswith("list"):
            return self._list(cell, name, kind)
        if self._source.type == "csv":
            cell = cell.strip() if self._source.trim else cell
            cell = cell.isin(self._source.nulls).ifelse(ibis.null("string"), cell) if self._source.nulls else cell
        if kind == "text":
            return cell
        value = self._parsed(cell, kind)
        # Of floats Ibis takes NaN for null on Spark; all texts of the pattern are floats.
        fits = cell.re_search(_PATTERNS[kind]) if kind == "float" else value.notnull()
        return ibis.ifelse(fits | cell.isnull(), value, self._refused(cell, name, kind, value.type()))

    def _parsed(self, cell: ir.StringValue, kind: str) -> ir.Value:
        """The value of a text; null for a text that is none, by a pattern, as engines take different ones."""
        text = cell.re_replace("[.]0*$", "") if kind == "int" else cell
        value = text.try_cast(_IBIS[kind])
        return ibis.ifelse(cell.re_search(_PATTERNS[kind]), value, ibis.null(value.type()))

    def _list(self, lists: ir.ArrayValue, name: str, kind: str) -> ir.Value:
        element = kind.removeprefix("list<").removesuffix(">")
        if element == "text":
            return lists
        values = lists.map(lambda text: self._parsed(text, element))
        wrong = lists.filter(lambda text: ~text.re_search(_PATTERNS[element]))
        refused = self._refused(wrong[0], name, kind, values.type())
        return ibis.ifelse(lists.isnull() | (wrong.length() == 0), values, refused)

    def _refused(self, value: ir.Value, name: str, kind: str, result: Any) -> ir.Value:
        return engine_functions.stop(self._engine, ibis.literal(f"cell\t{name}\t{kind}\t") + value).cast(result)
