"""The Parquet files of a split: found, opened and read through iopath, with their columns checked."""

import hashlib
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stem_torchrec.data.schema import Schema, SparseFeature
from stem_torchrec.runtime.errors import UserError, nearest, reason_of
from stem_torchrec.runtime.file_systems import g_pathmgr


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

    sparse: dict[str, SparseFeature]
    """The sparse features by name, in the order in which the model sees them."""
    dense: tuple[str, ...]
    labels: tuple[str, ...]
    group: str | None

    @classmethod
    def select(cls, schema: Schema, *, features: Sequence[str] = (), labels: Sequence[str] = ()) -> "Columns":
        """The columns of `schema`, of its sparse features and labels only those named, if any are."""
        sparse = {feature.name: feature for feature in schema.sparse_features}
        for kind, names, known in (("sparse feature", features, sparse), ("label", labels, schema.labels)):
            if not known:
                raise UserError(f"schema.json names no {kind}; a log needs one. datasets/README.md describes the file.")
            for name in names:
                if name not in known:
                    raise UserError(
                        f"the log has no {kind} {name!r}, only {', '.join(known)}{nearest(name, list(known))}"
                    )
            if len(set(names or known)) < len(names or known):
                raise UserError(f"a {kind} is named twice in {', '.join(names or known)}.")
        return cls(
            sparse={name: sparse[name] for name in features or sparse},
            dense=schema.dense_features,
            labels=tuple(labels or schema.labels),
            group=schema.group,
        )

    def differences(self, other: "Columns") -> list[str]:
        """The differences from `other`, which has sparse features of the same names; labels do not count.

        Example::

            columns.differences(other)  # ["num_embeddings of uid is 1000, not 999", "group is None, not 'user'"]
        """
        pairs = [
            (f"{field.name} of {name}", getattr(feature, field.name), getattr(other.sparse[name], field.name))
            for name, feature in self.sparse.items()
            for field in fields(feature)
        ]
        pairs += [("dense_features", self.dense, other.dense), ("group", self.group, other.group)]
        return [f"{name} is {value!r}, not {expected!r}" for name, value, expected in pairs if value != expected]

    @property
    def weights(self) -> dict[str, str]:
        """The column of weights by sparse feature, of the features that have one."""
        return {name: feature.weights for name, feature in self.sparse.items() if feature.weights is not None}

    @property
    def names(self) -> list[str]:
        """Every column once."""
        groups = [self.group] if self.group else []
        return list(dict.fromkeys([*self.sparse, *self.weights.values(), *self.dense, *self.labels, *groups]))


def find_row_groups(folder: str, split: str, schema: Schema, columns: Columns) -> list[RowGroup]:
    """The row groups of the Parquet files in `folder/split`, in the order of the file names.

    Reads every footer. Raises UserError for a folder without files, a file that is truncated, a column that is
    missing or has the wrong type, and a row count that is not the one in schema.json.
    """
    split_folder = posixpath.join(folder, split)
    exists = g_pathmgr.isdir(split_folder)
    names = sorted(name for name in g_pathmgr.ls(split_folder) if name.endswith(".parquet")) if exists else []
    if not names:
        raise UserError(f"{split_folder} holds no .parquet file; datasets/README.md shows the layout of a log.")
    row_groups: list[RowGroup] = []
    lists: list[set[str]] = []
    for path in (posixpath.join(split_folder, name) for name in names):
        try:
            with g_pathmgr.open(path, "rb") as file:
                metadata = pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is not a whole Parquet file ({reason_of(error)}); write it again.") from error
        types = metadata.schema.to_arrow_schema()
        check_types(types, path, columns)
        lists.append({name for name in columns.sparse if is_list(types.field(name).type)})
        if lists[-1] != lists[0]:
            name = min(lists[-1] ^ lists[0])
            raise UserError(
                f"column {name!r} is a list in only one of {path} and {names[0]}; give it the same type in all files."
            )
        first_row = 0
        for index in range(metadata.num_row_groups):
            rows = metadata.row_group(index).num_rows
            if rows:
                row_groups.append(RowGroup(path, index, first_row, rows, metadata))
            first_row += rows
    total = sum(row_group.rows for row_group in row_groups)
    if not total:
        raise UserError(f"the .parquet files of {split_folder} hold no rows.")
    if split in schema.splits and total != schema.splits[split].rows:
        raise UserError(
            f"{split_folder} holds {total} rows, but schema.json says {schema.splits[split].rows}; a file is missing "
            "or extra."
        )
    return row_groups


def fingerprint(row_groups: Sequence[RowGroup]) -> str:
    """Of the row groups and their rows, by which rows are found by their number."""
    groups = [(row_group.path.rpartition("/")[2], row_group.index, row_group.rows) for row_group in row_groups]
    return hashlib.sha256(repr(groups).encode()).hexdigest()[:16]


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


def ids_per_row(row_groups: Sequence[RowGroup], features: Iterable[str]) -> dict[str, float]:
    """Mean number of ids in a row by feature, by the files' footers, where an empty list counts as one id."""
    ids = dict.fromkeys(features, 0)
    for row_group in row_groups:
        chunks = row_group.metadata.row_group(row_group.index)
        for position in range(chunks.num_columns):
            # A list's ids are in a column of the file called tags.list.element.
            name = chunks.column(position).path_in_schema.partition(".")[0]
            if name in ids:
                ids[name] += chunks.column(position).num_values
    rows = sum(row_group.rows for row_group in row_groups)
    return {name: number / rows for name, number in ids.items()}


def check_types(schema: pa.Schema, path: str, columns: Columns) -> None:
    """Raises UserError for a column of `columns` that `schema` lacks or holds in a type that does not serve."""
    for name in columns.names:
        count = schema.names.count(name)
        if count != 1:
            raise UserError(f"{path} has {'several columns' if count else 'no column'} {name!r}; schema.json names it.")
        column = schema.field(name).type
        item = column.value_type if is_list(column) else column
        integer, floating = pa.types.is_integer(column), pa.types.is_floating(column)
        # A column may serve twice, as the user does who is a feature and the group.
        needs = {
            "a sparse feature needs integers or lists of integers": name not in columns.sparse
            or pa.types.is_integer(item),
            "a dense feature needs floats": name not in columns.dense or floating,
            "a label needs 0, 1 or null": name not in columns.labels
            or (integer or floating or pa.types.is_boolean(column)),
            "the group of gAUC needs integers": name != columns.group or integer,
        }
        for feature in (feature for feature, weights in columns.weights.items() if weights == name):
            lists = is_list(schema.field(feature).type)
            needs[f"the weights of {feature!r} need {'lists of floats' if lists else 'floats'}"] = (
                pa.types.is_floating(item) and is_list(column) == lists
            )
        for need, met in needs.items():
            if not met:
                raise UserError(f"column {name!r} is {column} in {path}; {need}. datasets/README.md shows the schema.")


def items(column: pa.Array) -> pa.Array:
    """The values of a column, of all its lists if it holds lists."""
    return pc.list_flatten(column) if is_list(column.type) else column


def is_list(column: pa.DataType) -> bool:
    """Whether a type is one of lists."""
    return pa.types.is_list(column) or pa.types.is_large_list(column)
