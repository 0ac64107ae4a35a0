"""Which labels a split has, from the footers of its files where they tell, else from its label columns.

Also the sentence by which commands refuse labels that are not binary.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stem_torchrec.data.checks import prepared
from stem_torchrec.data.column_types import is_text
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.footers import column_chunks, float_columns, missing_labels
from stem_torchrec.data.listing import RowGroup
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.file_systems import g_pathmgr


def refusal_of_kinds(columns: Columns, what: str, *, fix: str) -> str | None:
    """The sentence that refuses the first label that is not binary; None where all labels are.

    Args:
        columns: of the run.
        what: what takes binary labels alone, such as a command.
        fix: what to do; `{labels}` in it becomes the option that names the binary labels.

    Example::

        refusal_of_kinds(columns, "stem-compare", fix="leave the task out, as in {labels}")
        # the label of 'watch' is of kind number, but stem-compare takes binary ones alone; leave the task out, as in
        # --data.labels finish like.
    """
    if not columns.not_binary:
        return None
    label, kind = next(iter(columns.not_binary.items()))
    binary = [each for each in columns.labels if each not in columns.not_binary]
    fix = fix.format(labels=" ".join(["--data.labels", *binary]))
    return f"the label of {label!r} is of kind {kind}, but {what} takes binary ones alone; {fix}."


def label_kinds(row_groups: Sequence[RowGroup], columns: Columns, label: str) -> set[float]:
    """The different labels of a task, without missing ones, those outside of its space and those that weigh 0.

    It ends once 0 and 1 have occurred, or two different labels of a task that is not binary.

    A binary label that is neither breaks the schema; whoever reads the row reports it.

    Example::

        label_kinds(row_groups, columns, "like")  # {0}: nobody liked anything, so no order of the rows is better
    """
    kinds: set[float] = set()
    is_binary = columns.is_binary(label)
    for row_group in row_groups:
        in_footer = (
            None
            if columns.weights_of(label) or label in columns.spaces
            else _kinds_in_footer(row_group, columns.column_of(label), is_binary=is_binary)
        )
        if in_footer is None:
            in_footer = set(pc.unique(labeled_rows(row_group, columns, label)["label"]).to_pylist())
        kinds |= in_footer
        if kinds >= {0, 1} or (not is_binary and len(kinds) > 1):
            break
    return kinds


def has_mixed_group(row_groups: Sequence[RowGroup], columns: Columns, label: str) -> bool:
    """Whether some group (user) has two different labels, without which gAUC is undefined; reads until one has."""
    kinds: pa.Table | None = None
    for row_group in row_groups:
        rows = labeled_rows(row_group, columns, label, with_group=True)
        labeled = rows
        if label not in columns.not_binary:
            labeled = rows.filter(pc.is_in(rows["label"], pa.array([0, 1], pa.float32())))
        both = labeled if kinds is None else pa.concat_tables([kinds, labeled], promote_options="default")
        kinds = both.group_by(["group", "label"]).aggregate([])
        if pc.count_distinct(kinds["group"]).as_py() < kinds.num_rows:
            return True
    return False


def may_lack_labels(row_groups: Sequence[RowGroup], columns: Columns) -> bool:
    """Whether some row has no label of some task, or one that weighs 0, which trains as little; of a space it may.

    Reads floats, whose NaNs the footers do not tell. A row group whose writer left the nulls out may lack labels.
    """
    labels = [columns.column_of(label) for label in columns.labels]
    if columns.spaces or missing_labels(row_groups, labels):
        return True
    floats, weights = float_columns(row_groups, labels), set(map(columns.column_of, columns.row_weights))
    for row_group in row_groups if floats or weights else ():
        for column, _ in column_chunks([row_group], floats):
            if pa.types.is_floating(column.type) and pc.any(pc.is_nan(_read(row_group, column.name))).as_py():
                return True
        for column, chunk in column_chunks([row_group], weights):
            known = chunk.statistics is not None and chunk.statistics.has_min_max
            least = chunk.statistics.min if known else pc.min(_read(row_group, column.name)).as_py()
            if least is None or not np.float32(least):
                return True
    return False


def _kinds_in_footer(row_group: RowGroup, column: str, *, is_binary: bool) -> set[float] | None:
    """The least and the greatest label of a row group, or none where all are null; None where the footer lacks them.

    As 32-bit floats, in which they are read, and of which two may be one.
    """
    [(_, chunk)] = column_chunks([row_group], {column})
    statistics = chunk.statistics
    if statistics is None:
        return None
    if statistics.has_min_max:
        least, greatest = float(np.float32(statistics.min)), float(np.float32(statistics.max))
        return {least, greatest} if {least, greatest} <= {0, 1} or not is_binary else None
    return set() if statistics.has_null_count and statistics.null_count == chunk.num_values else None


def labeled_rows(row_group: RowGroup, columns: Columns, label: str, *, with_group: bool = False) -> pa.Table:
    """The labels of a task as `label`, in fp32, and the groups as `group`.

    Left out are those that are missing, outside of the task's space, or weigh 0.
    """

    def read(name: str) -> pa.Array:
        return prepared(_read(row_group, columns.column_of(name)), name, columns)

    def read_number(name: str) -> pa.Array:
        return read(name).cast(pa.float32(), safe=False)

    table = pa.table({"label": labels_in_space(label, columns, read_number)})
    if with_group:
        assert columns.group is not None
        groups = read(columns.group)
        # Ids beyond 2^63 wrap around, and stay different.
        kind = pa.large_string() if is_text(groups.type) else pa.int64()
        table = table.append_column("group", groups.cast(kind, safe=False))
    counted = pc.is_valid(table["label"])
    for name in columns.weights_of(label):
        counted = pc.and_(counted, pc.greater(read_number(name), 0))
    return table.filter(counted)


def labels_in_space(label: str, columns: Columns, read: Callable[[str], pa.ChunkedArray]) -> pa.ChunkedArray:
    """The labels of a task, (N,), null in rows outside of its space.

    Args:
        label: the task.
        columns: with the spaces.
        read: returns a column of numbers by its name, (N,).

    Example::

        # buy 1, 0, 1   click 1, 1, 0
        labels_in_space("buy", columns, table.column)  # 1, 0, null with --data.spaces buy click
    """
    labels, space = read(label), columns.spaces.get(label)
    return labels if space is None else pc.if_else(pc.equal(read(space), 1), labels, None)


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
