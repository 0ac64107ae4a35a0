"""The Parquet files of a split: found, opened and read through iopath, with their columns checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr

from stem_torchrec.data.schema import Schema
from stem_torchrec.errors import DataError, UserError


@dataclass(frozen=True)
class RowGroup:
    """A row group of a Parquet file: what is read at once."""

    path: str
    index: int
    first_row: int
    """Row of the file that the row group starts with."""
    rows: int
    metadata: pq.FileMetaData
    """The file's footer, kept so that opening the file again does not parse it."""


@dataclass(frozen=True)
class Columns:
    """The columns of a log that a run reads."""

    sparse: dict[str, int]
    """Number of embeddings by sparse feature; ids are below it."""
    dense: tuple[str, ...]
    labels: tuple[str, ...]
    group: str | None

    @classmethod
    def select(cls, schema: Schema, *, features: Sequence[str] = (), labels: Sequence[str] = ()) -> "Columns":
        """The columns of `schema`, of its sparse features and labels only those named, if any are."""
        sizes = {feature.name: feature.num_embeddings for feature in schema.sparse_features}
        for kind, names, known in (("sparse feature", features, sizes), ("label", labels, schema.labels)):
            for name in names:
                if name not in known:
                    raise UserError(f"the log has no {kind} {name!r}, only {', '.join(known)}.")
        return cls(
            sparse={name: sizes[name] for name in features or sizes},
            dense=schema.dense_features,
            labels=tuple(labels or schema.labels),
            group=schema.group,
        )

    @property
    def names(self) -> list[str]:
        """Every column once."""
        return list(dict.fromkeys([*self.sparse, *self.dense, *self.labels, *([self.group] if self.group else [])]))


def find_row_groups(folder: str, split: str, schema: Schema, columns: Columns) -> list[RowGroup]:
    """The row groups of the Parquet files in `folder/split`, in the order of the file names.

    Reads every footer. Raises UserError for a folder without files, a file that is truncated, a column that is
    missing or has the wrong type, and a row count that is not the one in schema.json.
    """
    where = str(PurePosixPath(folder) / split)
    names = sorted(n for n in g_pathmgr.ls(where) if n.endswith(".parquet")) if g_pathmgr.isdir(where) else []
    if not names:
        raise UserError(f"{where} holds no .parquet file; datasets/README.md shows the layout of a log.")
    row_groups = []
    for path in (str(PurePosixPath(where) / name) for name in names):
        try:
            with g_pathmgr.open(path, "rb") as file:
                metadata = pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is not a whole Parquet file ({error}); write it again.") from error
        check_types(metadata.schema.to_arrow_schema(), path, columns)
        first_row = 0
        for index in range(metadata.num_row_groups):
            rows = metadata.row_group(index).num_rows
            if rows:
                row_groups.append(RowGroup(path, index, first_row, rows, metadata))
            first_row += rows
    total = sum(row_group.rows for row_group in row_groups)
    if split in schema.splits and total != schema.splits[split].rows:
        raise UserError(
            f"{where} holds {total} rows, but schema.json says {schema.splits[split].rows}; a file is missing or extra."
        )
    return row_groups


def missing_labels(row_groups: Sequence[RowGroup], labels: Sequence[str]) -> bool:
    """Whether a label may be null anywhere, by the files' footers."""
    for metadata in {row_group.path: row_group.metadata for row_group in row_groups}.values():
        positions = [i for i in range(metadata.num_columns) if metadata.schema.column(i).path in labels]
        for index in range(metadata.num_row_groups):
            for position in positions:
                statistics = metadata.row_group(index).column(position).statistics
                # A writer may leave the count out; then only reading the column would tell.
                if statistics is None or not statistics.has_null_count or statistics.null_count:
                    return True
    return False


def check_types(schema: pa.Schema, path: str, columns: Columns) -> None:
    """Raises UserError for a column of `columns` that `schema` lacks or holds in a type that does not serve."""
    for name in columns.names:
        if name not in schema.names:
            raise UserError(f"{path} has no column {name!r}; schema.json names it.")
        column = schema.field(name).type
        item = column.value_type if _is_list(column) else column
        if name in columns.sparse:
            wanted, good = "a sparse feature needs integers or lists of integers", pa.types.is_integer(item)
        elif name in columns.dense:
            wanted, good = "a dense feature needs floats", pa.types.is_floating(column)
        elif name in columns.labels:
            wanted = "a label needs 0, 1 or null"
            good = any(test(column) for test in (pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating))
        else:
            wanted, good = "the group of gAUC needs integers", pa.types.is_integer(column)
        if not good:
            raise UserError(f"column {name!r} is {column} in {path}; {wanted}. datasets/README.md shows the schema.")


def read_row_group(row_group: RowGroup, columns: Columns) -> pa.Table:
    """Reads the columns of one row group and checks every value.

    Raises DataError with the file, row group, row and column of the first value that breaks the schema.
    """
    try:
        with g_pathmgr.open(row_group.path, "rb") as file:
            parquet = pq.ParquetFile(file, metadata=row_group.metadata)
            table = parquet.read_row_group(row_group.index, columns=columns.names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{row_group.path}, row group {row_group.index}: cannot be read ({error}).") from error
    for name in columns.names:
        _check_values(table.column(name).combine_chunks(), name, row_group, columns)
    return table


def _check_values(column: pa.Array, name: str, row_group: RowGroup, columns: Columns) -> None:
    if name in columns.sparse:
        if _is_list(column.type):
            parents, values, need = (
                pc.list_parent_indices(column),
                pc.list_flatten(column),
                "an id in every place",
            )
            nulls = pc.is_null(values)
        else:
            parents, values, need, nulls = None, column, "", None
        size = columns.sparse[name]
        bad = pc.or_(pc.less(values, 0), pc.greater_equal(values, size))
        bad = pc.fill_null(bad, False) if nulls is None else pc.or_kleene(bad, nulls)
        need = f"an id in [0, {size}), the table's rows in schema.json"
    elif name in columns.dense:
        parents, values, need = None, column, "a finite number"
        bad = pc.invert(pc.fill_null(pc.is_finite(column), False))
    elif name in columns.labels:
        parents, values, need = None, column, "0, 1 or null"
        numbers = column.cast(pa.float64())
        bad = pc.fill_null(pc.invert(pc.or_(pc.equal(numbers, 0), pc.equal(numbers, 1))), False)
    else:
        parents, values, need, bad = None, column, "an integer", pc.is_null(column)
    position = pc.index(bad, True).as_py()
    if position >= 0:
        row = position if parents is None else parents[position].as_py()
        raise DataError(
            f"{row_group.path}, row group {row_group.index}, row {row_group.first_row + row}, column {name!r}: "
            f"{values[position].as_py()} is not {need}."
        )


def _is_list(column: pa.DataType) -> bool:
    return pa.types.is_list(column) or pa.types.is_large_list(column)
