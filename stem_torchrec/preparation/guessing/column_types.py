"""The types of the columns of CSV, and the cells that mean that there is no value."""

from collections.abc import Mapping, Sequence

import ibis
import ibis.expr.types as ir

from stem_torchrec.preparation.engines.engine import Engine
from stem_torchrec.preparation.specs.spec import ColumnType

ALWAYS_NULL = ("?", r"\N", "NULL", "null", "NaN", "nan", "<NA>", "<null>", "#N/A")
"""Cells that mean nothing else in any column."""
NULL_IN_NUMBERS = (
    *("NA", "N/A", "n/a", "na", "None", "none", "NONE", "nil", "-", "--", ".", "unknown", "Unknown", "UNKNOWN"),
    *("missing", "undefined"),
)
"""Cells that may be a value of a text column, as NA is for Namibia, but not of a column of numbers or times."""
_EXACT = 2**53
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}"
_ZEROS = r"^[+-]?0[0-9]"


def guess_types(
    engine: Engine, cells: ir.Table, names: Sequence[str]
) -> tuple[dict[str, ColumnType], tuple[str, ...], dict[str, str]]:
    """The types of columns of trimmed texts, the cells that are nulls, and remarks on types that are not obvious.

    Args:
        engine: has kept the cells.
        cells: texts; an empty one is a null in any case.
        names: of the columns.

    Example::

        # price: "1.5", "NA"   city: "Bonn", "NA"
        guess_types(engine, cells, ["price", "city"])  # {"price": "float", "city": "text"}, ("", "NA"), {}
    """
    counts = _counts(engine, cells, names)
    types, remarks = {}, {}
    nulls: list[str] = []
    for name in names:
        types[name], remark = _type(counts[name])
        if remark:
            remarks[name] = remark
        markers = ALWAYS_NULL if types[name] == "text" else (*ALWAYS_NULL, *NULL_IN_NUMBERS)
        if counts[name]["always"] or (types[name] != "text" and counts[name]["weak"]):
            column = cells[name]
            seen = engine.rows(cells.filter(column.isin(markers)).select(cell=column).distinct())
            nulls += [cell for (cell,) in seen if cell not in nulls]
    return types, ("", *sorted(nulls)), remarks


def _counts(engine: Engine, cells: ir.Table, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """For each column, how many cells read as what."""
    tests: dict[str, dict[str, ir.BooleanValue]] = {}
    for name in names:
        cell = cells[name]
        always = cell.isin(ALWAYS_NULL)
        value = ibis.ifelse((cell == "") | always, ibis.null("string"), cell)
        number = value.try_cast("float64")
        tests[name] = {
            "always": always,
            "values": value.notnull(),
            "weak": value.isin(NULL_IN_NUMBERS),
            "numbers": number.notnull(),
            "whole": (number == number.floor()) & ~value.lower().contains("e"),
            "large": number.abs() > _EXACT,
            "zeros": number.notnull() & value.re_search(_ZEROS),
            "bools": value.lower().isin(("true", "false")),
            "dates": value.re_search(_DATE) & value.try_cast("date").notnull(),
            "times": value.re_search(_TIME) & value.try_cast("timestamp").notnull(),
        }
    kinds = list(tests[names[0]])
    sums = {
        f"{i} {kind}": tests[name][kind].sum().fill_null(0).cast("int64")
        for i, name in enumerate(names)
        for kind in kinds
    }
    [row] = engine.rows(cells.aggregate(**sums))
    chunks = [row[i * len(kinds) : (i + 1) * len(kinds)] for i in range(len(names))]
    return {name: dict(zip(kinds, map(int, chunk), strict=True)) for name, chunk in zip(names, chunks, strict=True)}


def _type(counts: Mapping[str, int]) -> tuple[ColumnType, str]:
    """The type of a column by what its cells read as, and what to say of it."""
    values = counts["values"] - counts["weak"]
    if values <= 0:
        return "text", ""
    if counts["bools"] == values:
        return "bool", ""
    if counts["numbers"] == values:
        if counts["zeros"]:
            return "text", "digits with zeros in front, so text"
        if counts["large"]:
            return "text", "whole numbers above 2^53, which a float would round, so text"
        return ("int" if counts["whole"] == values else "float"), ""
    if counts["dates"] == values:
        return "date", ""
    if counts["dates"] + counts["times"] == values:
        return "timestamp", ""
    return "text", ""
