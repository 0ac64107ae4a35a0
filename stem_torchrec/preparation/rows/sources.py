"""Sources as tables of an engine: typed columns, with a missing value wherever the source has none."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import ibis
import ibis.expr.datatypes as dt
import ibis.expr.types as ir

from stem_torchrec.preparation.engines.engine import ROW, Engine, in_order
from stem_torchrec.preparation.raw_files.columns import columns_of, files_with_rows
from stem_torchrec.preparation.raw_files.listing import check_type, find_files
from stem_torchrec.preparation.raw_files.path_columns import NO_VALUE, check_partitions, name_parts
from stem_torchrec.preparation.rows.cell_values import Cells, ibis_type_of
from stem_torchrec.preparation.specs.spec import ColumnType, Source
from stem_torchrec.runtime.errors import UserError, nearest

_NUMBERS = {"int64", "float64"}


def read_source(engine: Engine, name: str, source: Source, *, exact: bool = False) -> ir.Table:
    """The rows of a source, in the order of its files.

    Args:
        engine: reads the files.
        name: of the source, for errors.
        source: where and what they are.
        exact: reads whole numbers as text first, which takes longer, but knows those from 2^53 on.

    Raises UserError for a file that is missing, or has other columns than `source` names or than the other files.
    A query of the table raises RefusedCellError at a cell that is not of the type of its column.
    """
    files = files_with_rows(find_files(name, source), source)
    check_type(name, source, files)
    columns = columns_of(name, source, files)
    for file, shape in columns.items():
        if own := [column for column, _ in shape.kinds if column.lower() == ROW]:
            raise UserError(f"{file} names the column {own[0]!r}, which this program has for itself; rename it.")
    folders = check_partitions(name, source, files)
    below = replace(source, partitions=folders)
    tables, nulls = [], []
    # Neighbours that are alike become one query, and the order of the files stays.
    for (shape, parts), members in groupby(
        files, key=lambda file: (columns[file], tuple(name_parts(source, file).items()))
    ):
        table = _scanned(engine, name, below, list(members), shape.types, exact=exact)
        constants = {part: _constant(text, source.partitions.get(part, "text")) for part, text in parts}
        tables.append(table.mutate(**constants))
        nulls.append(shape.without_type - set(source.columns))
    table = _together(name, _with_nulls(tables, nulls))
    for column in (*source.columns, *source.partitions):
        if column not in table.columns:
            hint = nearest(column, table.columns) or f"; it has {', '.join(table.columns)}."
            raise UserError(f"sources[{name}] names the column {column!r}, which {files[0]} lacks{hint}")
    return table


def _scanned(
    engine: Engine,
    name: str,
    source: Source,
    files: Sequence[str],
    types: Mapping[str, ColumnType],
    *,
    exact: bool,
) -> ir.Table:
    as_text = source.type == "csv" and (source.trim or exact)
    cells: dict[str, ColumnType] = dict(types)
    if as_text:
        cells = dict.fromkeys(types, "text")
    elif exact and source.type == "json":
        whole: dict[ColumnType, ColumnType] = {"int": "text", "list<int>": "list<text>"}
        cells = {column: whole.get(kind, kind) for column, kind in types.items()}
    table = engine.scan(files, replace(source, nulls=()) if as_text else source, cells)
    # An engine that numbers the rows of files gives texts.
    as_text |= ROW in table.columns and source.type == "csv"
    reader = Cells(name, engine.name, nulls=source.nulls if as_text else (), trim=as_text and source.trim)
    wanted: dict[str, ColumnType] = dict(types) if source.type == "csv" else dict(source.columns)
    values = {
        column: reader.typed(table[column], column, wanted.get(column)) for column in table.columns if column != ROW
    }
    kept = {column: value for column, value in values.items() if value is not None}
    if not kept:
        raise UserError(
            f"{files[0]} has no column that can be read; sources[{name}] needs numbers, text, times or lists."
        )
    return table.select(**kept, **({ROW: table[ROW]} if ROW in table.columns else {}))


def _constant(text: str, kind: ColumnType) -> ir.Value:
    return ibis.literal(None if text == NO_VALUE else text, type="string").try_cast(ibis_type_of(kind))


def _with_nulls(tables: Sequence[ir.Table], nulls: Sequence[set[str]]) -> list[ir.Table]:
    """The tables with all columns of all, which are null, of the type that others have, where one has no values.

    Args:
        tables: of which some may lack columns.
        nulls: of each table the columns without a type.
    """
    kinds: dict[str, dt.DataType] = {}
    for table, without in zip(tables, nulls, strict=True):
        kinds |= {name: kind for name, kind in table.schema().items() if name not in kinds and name not in without}
    return [
        table.mutate(
            **{name: ibis.null(kind) for name, kind in kinds.items() if name in without or name not in table.columns}
        )
        for table, without in zip(tables, nulls, strict=True)
    ]


def _together(name: str, tables: Sequence[ir.Table]) -> ir.Table:
    """The rows of tables with the same columns, which have one type in all of them."""
    first, *others = tables
    for table in others:
        for column, kind in table.schema().items():
            given = {str(first.schema()[column]), str(kind)}
            if len(given) > 1 and not all(each.startswith("timestamp") for each in given):
                fix = "float" if given == _NUMBERS else "text"
                raise UserError(
                    f"the column {column!r} of sources[{name}] is {' and '.join(sorted(given))} in different files; "
                    f"name its type, as in columns: {{{column}: {fix}}}."
                )
    return in_order([first, *(table.select(*first.columns) for table in others)])
