"""Reads the rows of a row group, checks every value, and counts the rows that break the schema."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stem_torchrec.data.checks import bad_rows, converted, prepared
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.listing import RowGroup
from stem_torchrec.runtime.errors import DataError, reason_of
from stem_torchrec.runtime.file_systems import g_pathmgr

BAD = "bad row"
"""The column of a row group that is read with `skip`: 0 for a good row, else 1 + the number of its reason."""
UNREADABLE = "unreadable"
"""The reason of rows in a damaged part of a file; others are named after the column."""
_NAMED = 5
"""Rows that a reader names, of those that it skips."""


class BadRows:
    """Counts the rows that are skipped, by reason, for a reader and its worker processes.

    Args:
        columns: the columns of the log.
        max_skipped: the number of rows that may be skipped.
    """

    def __init__(self, columns: Columns, *, max_skipped: int) -> None:
        self.reasons, self._max_skipped = reasons_of(columns), max_skipped
        self.counted: Tensor = torch.zeros(len(self.reasons), dtype=torch.int64).share_memory_()
        """Rows by reason."""

    def take(self, table: pa.Table) -> pa.Table:
        """Counts the rows that BAD marks, and returns the table without that column.

        Raises DataError when more than `max_skipped` rows have been skipped.
        """
        numbers = table.column(BAD).to_numpy()
        if numbers.any():
            self.counted += torch.from_numpy(np.bincount(numbers, minlength=len(self.reasons) + 1)[1:])
            total = int(self.counted.sum())
            if total > self._max_skipped:
                reasons = ", ".join(f"{reason}: {count}" for reason, count in self.counts().items())
                raise DataError(
                    f"{total} rows of this rank break the schema ({reasons}), and --data.max-bad-share lets "
                    f"{self._max_skipped} be skipped; mend the log, or raise it."
                )
        return table.drop_columns([BAD])

    def restart(self) -> None:
        """Sets all counts to 0."""
        self.counted.zero_()

    def counts(self) -> dict[str, int]:
        """The number of rows by reason, for the reasons that have any."""
        return {reason: count for reason, count in zip(self.reasons, self.counted.tolist(), strict=True) if count}


def reasons_of(columns: Columns) -> list[str]:
    """The reasons for which a row may be skipped: its columns, and damage."""
    return [*columns.names, UNREADABLE]


def read_row_group(row_group: RowGroup, columns: Columns, *, skip: bool = False, group: bool = True) -> pa.Table:
    """Reads the columns of one row group by name and checks every value.

    A column's type does not depend on the file, but for one of nulls, which goes with any.

    Args:
        row_group: the row group to read.
        columns: the columns to read.
        skip: returns rows that break the schema as rows of nulls, with the number of the reason in a column BAD.
        group: whether to return the group, which is checked anyway; if it is a feature, it is returned as one.

    Raises DataError with the file, row group, row and column of the first value that breaks the schema, unless `skip`
    is true.
    """
    names = [name for name in columns.names if group or name != columns.group or name in columns.sparse]
    table, damage = _read_columns(row_group, columns)
    reasons = np.zeros(row_group.rows, dtype=np.uint16)
    if damage is not None:
        if not skip or isinstance(damage.__cause__, FileNotFoundError | PermissionError):
            raise damage
        _report_skipped(str(damage))
        reasons[:] = len(reasons_of(columns))
    else:
        place, first_row = f"{row_group.path}, row group {row_group.index}, row", row_group.first_row
        for number, name in enumerate(columns.names):
            for rows, message in bad_rows(table, name, columns, place=place, first_row=first_row):
                if not skip:
                    raise DataError(message)
                _report_skipped(message)
                reasons[rows[reasons[rows] == 0]] = number + 1
        if reasons.any():
            table = table.take(pa.array(np.arange(table.num_rows), mask=reasons > 0))
    done = pa.table({name: converted(table.column(name).combine_chunks(), name, columns) for name in names})
    return done.append_column(BAD, pa.array(reasons)) if skip else done


def _read_columns(row_group: RowGroup, columns: Columns) -> tuple[pa.Table, DataError | None]:
    """The columns of a row group by name, prepared for the checks; nulls and the error where it cannot be read."""
    error, files = None, {name: columns.column_of(name) for name in columns.names}
    try:
        with g_pathmgr.open(row_group.path, "rb") as file:
            # Only the checksums that a writer can add show every damaged page.
            parquet = pq.ParquetFile(file, metadata=row_group.metadata, page_checksum_verification=True)
            read = parquet.read_row_group(row_group.index, columns=list(dict.fromkeys(files.values())))
    except (pa.ArrowException, OSError) as cause:
        place = f"{row_group.path}, row group {row_group.index}"
        error = DataError(f"{place}: cannot be read ({reason_of(cause)}); write the file again.")
        error.__cause__ = cause
        types = row_group.metadata.schema.to_arrow_schema()
        kinds = {column: types.field(column).type for column in files.values()}
        read = pa.table({column: pa.nulls(row_group.rows, kind) for column, kind in kinds.items()})
    return pa.table({name: prepared(read.column(column), name, columns) for name, column in files.items()}), error


_reported: list[str] = []


def _report_skipped(message: str) -> None:
    """Prints the first few messages about rows that this process skips, each once."""
    if len(_reported) < _NAMED and message not in _reported:
        _reported.append(message)
        print(f"skipped: {message}", file=sys.stderr, flush=True)
