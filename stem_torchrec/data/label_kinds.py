"""Which labels a split has, from the footers of its files where they tell, else from its label columns."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stem_torchrec.data.footers import column_chunks
from stem_torchrec.data.listing import RowGroup
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.file_systems import g_pathmgr


def label_kinds(row_groups: Sequence[RowGroup], label: str) -> set[float]:
    """The different labels of a task, without nulls; reads no further once 0 and 1 have occurred.

    A number that is neither breaks the schema; whoever reads the row reports it.

    Example::

        label_kinds(row_groups, "like")  # {0}: nobody liked anything, so no order of the rows is better than another
    """
    kinds: set[float] = set()
    for row_group, (_, chunk) in zip(row_groups, column_chunks(row_groups, {label}), strict=True):
        in_footer = _kinds_in_footer(chunk)
        values = pc.unique(_read(row_group, label)).to_pylist() if in_footer is None else in_footer
        kinds |= {float(value) for value in values if value is not None}
        if kinds >= {0, 1}:
            break
    return kinds


def has_mixed_group(row_groups: Sequence[RowGroup], label: str, group: str) -> bool:
    """Whether some group (user) has labels of both kinds, without which gAUC is undefined; reads until one has."""
    kinds = pa.table({"group": pa.array([], pa.int64()), "label": pa.array([], pa.float32())})
    for row_group in row_groups:
        # Ids beyond 2^63 wrap around, and stay different.
        groups = _read(row_group, group).cast(pa.int64(), safe=False)
        rows = pa.table({"group": groups, "label": _read(row_group, label).cast(pa.float32())})
        labeled = rows.filter(pc.is_in(rows["label"], pa.array([0, 1], pa.float32())))
        kinds = pa.concat_tables([kinds, labeled]).group_by(["group", "label"]).aggregate([])
        if pc.count_distinct(kinds["group"]).as_py() < kinds.num_rows:
            return True
    return False


def _kinds_in_footer(chunk: pq.ColumnChunkMetaData) -> set[float] | None:
    """The least and the greatest label of a row group, or none where all are null; None where the footer lacks them."""
    statistics = chunk.statistics
    if statistics is None:
        return None
    if statistics.has_min_max:
        least, greatest = float(statistics.min), float(statistics.max)
        return {least, greatest} if {least, greatest} <= {0, 1} else None
    return set() if statistics.has_null_count and statistics.null_count == chunk.num_values else None


def _read(row_group: RowGroup, column: str) -> pa.ChunkedArray:
    try:
        with g_pathmgr.open(row_group.path, "rb") as file:
            parquet = pq.ParquetFile(file, metadata=row_group.metadata)
            return parquet.read_row_group(row_group.index, columns=[column]).column(column)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{row_group.path}, row group {row_group.index}: column {column!r} cannot be read ({reason_of(error)}); "
            "write the file again."
        ) from error
