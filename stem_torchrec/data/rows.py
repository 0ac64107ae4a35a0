"""The rows of a row group, checked value by value, and what becomes of those that break the schema."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from iopath.common.file_io import g_pathmgr
from numpy.typing import NDArray
from torch import Tensor

from stem_torchrec.data.files import Columns, RowGroup, is_list, items
from stem_torchrec.runtime.errors import DataError, reason_of

BAD = "bad row"
"""The column of a row group that is read with `skip`: 0 for a good row, else 1 + the number of its reason."""
UNREADABLE = "unreadable"
"""The reason of rows in a damaged part of a file; others are named after the column."""
_NAMED = 5
"""Rows that a reader names, of those that it skips."""


class BadRows:
    """Counts the rows that are skipped, by reason, for a reader and its worker processes.

    Args:
        columns: of the log.
        most: as many may be skipped.
    """

    def __init__(self, columns: Columns, *, most: int) -> None:
        self.reasons, self._most = reasons_of(columns), most
        self.counted: Tensor = torch.zeros(len(self.reasons), dtype=torch.int64).share_memory_()
        """Rows by reason."""

    def take(self, table: pa.Table) -> pa.Table:
        """Counts the rows that are bad, and returns the table without that column.

        Raises DataError where more have been skipped than may be.
        """
        numbers = table.column(BAD).to_numpy()
        if numbers.any():
            self.counted += torch.from_numpy(np.bincount(numbers, minlength=len(self.reasons) + 1)[1:])
            total = int(self.counted.sum())
            if total > self._most:
                said = ", ".join(f"{reason}: {count}" for reason, count in self.counts().items())
                raise DataError(
                    f"{total} rows of this rank break the schema ({said}), and --data.max-bad-share lets {self._most} "
                    "be skipped; mend the log, or raise it."
                )
        return table.drop_columns([BAD])

    def restart(self) -> None:
        """Forgets what has been counted."""
        self.counted.zero_()

    def counts(self) -> dict[str, int]:
        """Rows by reason, of which there are some."""
        return {reason: count for reason, count in zip(self.reasons, self.counted.tolist(), strict=True) if count}


def reasons_of(columns: Columns) -> list[str]:
    """Why a row may be bad."""
    return [*columns.names, UNREADABLE]


def read_row_group(row_group: RowGroup, columns: Columns, *, skip: bool = False) -> pa.Table:
    """Reads the columns of one row group and checks every value; a column's type does not depend on the file.

    Args:
        row_group: where.
        columns: which.
        skip: rows that break the schema come as rows of nulls, and a further column BAD says why.

    Raises DataError with the file, row group, row and column of the first value that breaks the schema, unless they are
    to be skipped.
    """
    place = f"{row_group.path}, row group {row_group.index}"
    reasons = np.zeros(row_group.rows, dtype=np.uint16)
    try:
        with g_pathmgr.open(row_group.path, "rb") as file:
            # Checksums are there if the writer was asked for them; only they show every damaged page.
            parquet = pq.ParquetFile(file, metadata=row_group.metadata, page_checksum_verification=True)
            table = parquet.read_row_group(row_group.index, columns=columns.names)
    except (pa.ArrowException, OSError) as error:
        said = f"{place}: cannot be read ({reason_of(error)}); write the file again."
        if not skip or isinstance(error, FileNotFoundError | PermissionError):
            raise DataError(said) from error
        _say_skipped(said)
        reasons[:] = len(reasons_of(columns))
        types = row_group.metadata.schema.to_arrow_schema()
        table = pa.table({name: pa.nulls(row_group.rows, types.field(name).type) for name in columns.names})
    else:
        for number, name in enumerate(columns.names):
            for rows, said in _bad_rows(table.column(name).combine_chunks(), name, row_group, columns):
                if not skip:
                    raise DataError(said)
                _say_skipped(said)
                reasons[rows[reasons[rows] == 0]] = number + 1
        if reasons.any():
            table = table.take(pa.array(np.arange(table.num_rows), mask=reasons > 0))
    read = pa.table({name: _converted(table.column(name), name, columns) for name in columns.names})
    return read.append_column(BAD, pa.array(reasons)) if skip else read


def _bad_rows(
    column: pa.Array, name: str, row_group: RowGroup, columns: Columns
) -> Iterator[tuple[NDArray[np.int64], str]]:
    """Rows in which a column breaks the schema, with a sentence about the first of them."""
    for check in _checks(column, name, columns):
        position = pc.index(check.bad, True).as_py()
        if position < 0:
            continue
        positions = np.flatnonzero(pc.fill_null(check.bad, False).to_numpy(zero_copy_only=False))
        rows = pc.list_parent_indices(column).to_numpy()[positions] if is_list(column.type) else positions
        value = items(column)[position].as_py()
        row = row_group.first_row + int(rows[0])
        place = f"{row_group.path}, row group {row_group.index}, row {row}, column {name!r}"
        yield rows, f"{place}: {'null' if value is None else value} is not {check.need}."


_said_skipped: list[str] = []


def _say_skipped(said: str) -> None:
    """Names the first few rows that this process skips, each once."""
    if len(_said_skipped) < _NAMED and said not in _said_skipped:
        _said_skipped.append(said)
        print(f"skipped: {said}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Check:
    """Values of a column that break the schema."""

    bad: pa.BooleanArray
    """By value; of lists by item."""
    need: str
    """What a value must be."""


def _checks(column: pa.Array, name: str, columns: Columns) -> Iterator[_Check]:
    values = _cast(column, name, columns)
    if name in columns.sparse:
        size = columns.sparse[name]
        outside = pc.or_(pc.less(values, 0), pc.greater_equal(values, size))
        # A null is an empty bag, but not an id within a list.
        yield _Check(
            pc.fill_null(outside, is_list(column.type)), f"an id in [0, {size}), the table's rows in schema.json"
        )
    if name in columns.dense:
        yield _Check(pc.invert(pc.fill_null(pc.is_finite(values), False)), "a finite 32-bit float")
    if name in columns.labels:
        yield _Check(pc.and_(pc.not_equal(values, 0), pc.not_equal(values, 1)), "0, 1 or null")
    if name == columns.group:
        yield _Check(pc.is_null(values), "an integer")


def _cast(column: pa.Array, name: str, columns: Columns) -> pa.Array:
    """The values, of lists the items, as int64 or float32."""
    whole = name in columns.sparse or name == columns.group
    # Unsafe: what does not fit becomes negative or infinite, and that is refused.
    return items(column).cast(pa.int64() if whole else pa.float32(), safe=False)


def _converted(chunks: pa.ChunkedArray, name: str, columns: Columns) -> pa.Array:
    """A column without bad values in a type that does not depend on the file.

    Ids become int32 where the table allows it, since a reader holds hundreds of thousands of rows.
    """
    column = chunks.combine_chunks()
    if name not in columns.sparse:
        return _cast(column, name, columns)
    item = pa.int32() if columns.sparse[name] <= 2**31 and name != columns.group else pa.int64()
    return column.cast(pa.list_(item) if is_list(column.type) else item)
