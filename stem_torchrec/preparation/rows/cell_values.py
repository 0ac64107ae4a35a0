"""The values of the cells of a source: a column of a file as one of the types that a spec names."""

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from stem_torchrec.expressions import engine_functions
from stem_torchrec.expressions.function import Engine as EngineName
from stem_torchrec.preparation.engines.engine import refused_text
from stem_torchrec.preparation.raw_files.cell_types import EXACT
from stem_torchrec.preparation.specs.spec import ColumnType
from stem_torchrec.runtime.errors import UserError

_WHOLE = r"^[+-]?[0-9]+([.]0*)?\z"
"""Text of a whole number. `$` would also match before a line end in Java."""
_PATTERNS = {
    "float": r"(?i)^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)(e[+-]?[0-9]+)?\z|^[+-]?(nan|inf|infinity)\z",
    "bool": r"(?i)^(true|false|t|f|yes|no|y|n|1|0)\z",
    "date": r"^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}\z",
    "timestamp": r"^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([ T]|\z)",
}
"""Texts of values; engines take others besides, such as 1d for a float or 2022 for a date."""
_IBIS = {
    "int": "int64",
    "float": "float64",
    "text": "string",
    "bool": "boolean",
    "timestamp": "timestamp('UTC')",
    "date": "date",
}


class Cells:
    """Reads the columns of a source, and ends the query at a cell that is not of the type of its column.

    Args:
        source: its name.
        engine: computes the values.
        nulls: texts that mean that there is no value.
        trim: whether blanks around texts do not count.
    """

    def __init__(self, source: str, engine: EngineName, *, nulls: tuple[str, ...] = (), trim: bool = False) -> None:
        self._source, self._engine, self._nulls, self._trim = source, engine, nulls, trim

    def typed(self, column: ir.Column, name: str, kind: ColumnType | None) -> ir.Value | None:
        """The column as values of a type, or of the one that is nearest to its own if none is wanted.

        None for a column of a type that nothing can be made of, such as a struct, if none is wanted.
        """
        given = column.type()
        if isinstance(given, dt.Array):
            return self._list(column, given, name, kind)
        if nearest := _without_values(given):
            return ibis.null(ibis_type_of(kind or nearest))
        if given.is_string():
            return self.from_text(column, name, kind or "text")
        if given.is_integer() and kind in (None, "int", "float", "text"):
            return self._whole(column, name) if kind in (None, "int") else column.cast(ibis_type_of(kind))
        if given.is_decimal() and kind in (None, "int", "float"):
            whole = kind == "int" or (kind is None and given.scale == 0)
            return self._whole(column, name) if whole else column.cast("float64")
        if given.is_floating() and kind in (None, "int", "float"):
            return self._whole(column, name) if kind == "int" else column.cast("float64")
        if given.is_boolean() and kind in (None, "bool", "int"):
            return column if kind != "int" else column.cast("int64")
        if given.is_timestamp() and kind in (None, "timestamp"):
            return column
        if given.is_date() and kind in (None, "date"):
            return column
        self._check_known(given, name, kind)
        return None

    def _check_known(self, given: dt.DataType, name: str, kind: ColumnType | None) -> None:
        if kind is not None:
            files = given.raw_type.sql() if isinstance(given, dt.Unknown) else str(given)
            raise UserError(
                f"sources[{self._source}].columns[{name}] is {kind}, but the files have {files.lower()}, which is "
                "not read as such; leave it out, and compute what you need under columns."
            )

    def _whole(self, number: ir.NumericValue, name: str) -> ir.Value:
        """The numbers as int64, if they are whole and exact."""
        kind = number.type()
        if kind.is_integer() and not kind.is_uint64():
            return number.cast("int64")
        if kind.is_floating():
            # The null comes second, as engines compute it only for rows that the first condition leaves.
            refused = self._refused(number, name, "int", "int64")
            whole = (_is_whole(number), number.try_cast("int64"))
            return ibis.cases(whole, (number.isnull() | number.isnan(), ibis.null("int64")), else_=refused)
        if kind.is_decimal():
            fits = (number % 1 == 0) & number.try_cast("int64").notnull()
        else:
            fits = number.try_cast("int64").notnull()
        return ibis.ifelse(
            fits | number.isnull(), number.try_cast("int64"), self._refused(number, name, "int", "int64")
        )

    def _list(self, column: ir.ArrayColumn, given: dt.Array, name: str, kind: ColumnType | None) -> ir.Value | None:
        element = given.value_type
        if _without_values(element) and kind in (None, "list<int>", "list<float>", "list<text>"):
            lists = ibis_type_of(kind or "list<int>")
            return ibis.ifelse(column.isnull(), ibis.null(lists), ibis.literal([], lists))
        if element.is_string() and kind in (None, "list<text>"):
            return column
        if element.is_string() and kind == "list<int>":
            wrong = column.filter(lambda each: ~each.re_search(_WHOLE) | _integer(each).isnull())
            return self._all(column, column.map(_integer), wrong, name, kind)
        if element.is_string() and kind == "list<float>":
            wrong = column.filter(lambda each: ~each.re_search(_PATTERNS["float"]))
            return self._all(column, column.map(_parsed_float), wrong, name, kind)
        if element.is_integer() and not element.is_uint64() and kind in (None, "list<int>"):
            return column.cast("array<int64>")
        if element.is_integer() and kind in (None, "list<int>"):
            wrong = column.filter(lambda each: each.try_cast("int64").isnull() & each.notnull())
            return self._all(column, column.map(lambda each: each.try_cast("int64")), wrong, name, "list<int>")
        if element.is_floating() and kind == "list<int>":
            wrong = column.filter(lambda each: ~_is_whole(each))
            return self._all(column, column.map(lambda each: each.try_cast("int64")), wrong, name, kind)
        if element.is_numeric() and kind in (None, "list<float>"):
            return column.cast("array<float64>")
        self._check_known(given, name, kind)
        return None

    def _all(self, column: ir.ArrayColumn, values: ir.Value, wrong: ir.ArrayValue, name: str, kind: str) -> ir.Value:
        """The values of lists without a wrong element."""
        fits = column.isnull() | (wrong.length() == 0)
        return ibis.ifelse(fits, values, self._refused(wrong[0], name, kind, values.type()))

    def from_text(self, cell: ir.StringValue, name: str, kind: ColumnType) -> ir.Value:
        """The values of texts."""
        cell = cell.strip() if self._trim else cell
        cell = cell.isin(self._nulls).ifelse(ibis.null("string"), cell) if self._nulls else cell
        if kind == "text":
            return cell
        if kind == "int":
            # Such as 1e3, or NaN, which is no value.
            number = _parsed_float(cell)
            other = ibis.ifelse(_is_whole(number), number.try_cast("int64"), ibis.null("int64"))
            value = cell.re_search(_WHOLE).ifelse(_integer(cell), other)
            cell = ibis.ifelse(number.isnan(), ibis.null("string"), cell)
        elif kind in _IBIS:
            value = _parsed(cell, kind)
        else:
            self._check_known(cell.type(), name, kind)
            raise AssertionError(kind)
        # Of floats Ibis takes NaN for null on Spark; all texts of the pattern are floats.
        fits = cell.re_search(_PATTERNS[kind]) if kind == "float" else value.notnull()
        return ibis.ifelse(fits | cell.isnull(), value, self._refused(cell, name, kind, value.type()))

    def _refused(self, value: ir.Value, name: str, kind: str, result: dt.DataType | str) -> ir.Value:
        """Ends the query in a row that is evaluated here."""
        text = ibis.literal(refused_text(self._source, name, kind)) + value.cast("string")
        return engine_functions.stop(self._engine, text).cast(result)


def _without_values(given: dt.DataType) -> ColumnType | None:
    """The type of values to take for a column that has none; None for a column of another type.

    Arrow has the null type for it, and Ibis does not know by name what DuckDB makes of that.
    """
    name = given.raw_type.sql() if isinstance(given, dt.Unknown) else "NULL" if given.is_null() else ""
    names: dict[str, ColumnType] = {"NULL": "int", '"NULL"': "int", '"NULL"[]': "list<int>"}
    return names.get(name)


def _is_whole(number: ir.NumericValue) -> ir.BooleanValue:
    return (number.try_cast("int64") == number) & (number.abs() < EXACT)


def _parsed(text: ir.StringValue, kind: str) -> ir.Value:
    """The value of a text, by a pattern; null for a text that is none."""
    return ibis.ifelse(text.re_search(_PATTERNS[kind]), text.try_cast(_IBIS[kind]), ibis.null(_IBIS[kind]))


def _parsed_float(text: ir.StringValue) -> ir.Value:
    return _parsed(text, "float")


def _integer(text: ir.StringValue) -> ir.Value:
    return text.re_replace("[.]0*$", "").try_cast("int64")


def ibis_type_of(kind: ColumnType) -> str:
    """The Ibis type of the values of a type."""
    return f"array<{_IBIS[kind[5:-1]]}>" if kind.startswith("list") else _IBIS[kind]
