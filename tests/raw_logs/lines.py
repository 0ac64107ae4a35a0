"""Text of many cells with a separator, at the speed of Arrow; a cell that contains the separator is in quotes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Cells = np.ndarray | pa.Array
"""A column; null is an empty cell."""


def write_lines(
    path: Path, columns: Mapping[str, Cells], *, separator: str = ",", header: bool = True, end: str = ""
) -> None:
    """Writes a line for each row.

    Args:
        path: of the file.
        columns: cells by the name of the column.
        separator: between cells.
        header: whether the first line has the names.
        end: what follows the last line.
    """
    cells = [_quoted(text(column), separator.strip()) for column in columns.values()]
    lines = pc.binary_join_element_wise(*cells, separator)
    with path.open("wb") as file:
        if header:
            file.write((separator.join(columns) + "\n").encode())
        file.write("".join(f"{line}\n" for line in lines.to_pylist()).encode())
        file.write(end.encode())


def text(column: Cells) -> pa.Array:
    """The cells as text, empty where null; floats have a point."""
    column = pa.array(column)
    cells = pc.fill_null(column.cast(pa.string()), "")
    if not pa.types.is_floating(column.type):
        return cells
    return pc.replace_substring_regex(cells, r"^(-?\d+)$", r"\1.0")


def whole_float(numbers: Cells, missing: np.ndarray | None = None) -> pa.Array:
    """Whole numbers as a library writes floats, `4.0`, and empty cells where `missing`."""
    cells = pc.binary_join_element_wise(text(numbers), ".0", "")
    return cells if missing is None else blank(cells, missing)


def blank(column: Cells, missing: np.ndarray) -> pa.Array:
    """The cells as text, empty where `missing`."""
    return pc.if_else(pa.array(missing), "", text(column))


def pick(values: list[str], index: np.ndarray) -> pa.Array:
    """The text of each index."""
    return pa.array(values).take(pa.array(index))


def _quoted(cells: pa.Array, separator: str) -> pa.Array:
    if not separator:
        return cells
    quoted = pc.binary_join_element_wise('"', cells, '"', "")
    return pc.if_else(pc.match_substring(cells, separator), quoted, cells)
