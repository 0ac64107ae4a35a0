"""What an engine does: read files, keep the result of a query, and write it as Parquet. Queries are Ibis tables.

DuckDB runs inside this process and spills to disk; Spark runs on a cluster. Both give the same log.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ibis
import ibis.expr.types as ir

from stem_torchrec.expressions.function import Engine as EngineName
from stem_torchrec.preparation.specs.spec import ColumnType, Source
from stem_torchrec.runtime.errors import UserError

ROW = "__row"
"""Column of a kept table that rises in the order of its rows; an engine that reads files out of order scans it too."""
NO_CELL = "\ue000"
"""Text that no cell has, as engines want at least one that means null."""
_CELL = re.compile(r"cell\t(?P<source>[^\t]*)\t(?P<column>[^\t]*)\t(?P<type>[^\t]*)\t(?P<value>.*)", re.DOTALL)


class RefusedCellError(UserError):
    """A cell is not of the type of its column.

    Args:
        source: its name.
        column: the name of the column.
        column_type: of the column, as "list<int>".
        value: of the cell, as the engine writes it.
    """

    def __init__(self, source: str, column: str, column_type: str, value: str) -> None:
        self.source, self.column, self.column_type, self.value = source, column, column_type, value
        super().__init__(f"column {column!r} of sources[{source}] has {value!r}, which is not {column_type}.")


def refused_text(source: str, column: str, column_type: str) -> str:
    """What a query ends with at a cell that is not of the type of its column, followed by the value of the cell."""
    return f"cell\t{source}\t{column}\t{column_type}\t"


def refused_cell(text: str) -> RefusedCellError | None:
    """The error for a cell of which the text of an engine's error tells by `refused_text`; None for another error."""
    cell = _CELL.search(text)
    return None if cell is None else RefusedCellError(cell["source"], cell["column"], cell["type"], cell["value"])


def in_order(tables: Sequence[ir.Table]) -> ir.Table:
    """The rows of tables with the same columns, one after another; Ibis alone begins with the last of three.

    Args:
        tables: at least one.
    """
    if len(tables) == 1:
        return tables[0]
    middle = len(tables) // 2
    return ibis.union(in_order(tables[:middle]), in_order(tables[middle:]), distinct=False)


class Engine(Protocol):
    """DuckDB or Spark."""

    name: EngineName

    def scan(self, files: Sequence[str], source: Source, types: Mapping[str, ColumnType]) -> ir.Table:
        """The rows of files, in order, or with a column ROW that rises in this order through all scans.

        An engine with ROW reads CSV and JSON lines as text, with an empty text for an empty cell of CSV.

        Args:
            files: paths or URLs.
            source: how to read them.
            types: of all columns of CSV and JSON lines, in the order of the file; those of Parquet are in its files.
        """

    def keep(self, name: str, table: ir.Table) -> ir.Table:
        """Runs a query and keeps its rows, with their order in a column ROW, unless the query has one.

        What was kept under the name before counts as the same, so that interrupted work goes on behind it.
        """

    def settled(self, name: str, table: ir.Table) -> ir.Table:
        """The rows of a query that several others read, kept if the engine would compute them for each of these."""

    def rows(self, table: ir.Table) -> list[tuple[Any, ...]]:
        """The few rows of a query, in its order."""

    def write(self, table: ir.Table, folder: Path, *, row_group_size: int) -> None:
        """Runs a query and writes its rows, in its order, as Parquet files of a new folder."""

    def write_file(self, table: ir.Table, file: Path, *, row_group_size: int) -> None:
        """Runs a query and writes its rows, in its order, as one Parquet file, which appears when it is complete."""

    def parquet(self, path: Path) -> ir.Table:
        """The rows of a Parquet file, or of a folder of such files."""

    def progress(self) -> float | None:
        """The percentage of the query that runs, for another thread; None if the engine does not tell."""

    def close(self) -> None:
        """Ends the engine; what was kept stays."""
