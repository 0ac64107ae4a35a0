"""The columns that a run reads, and the row groups of a split that have them."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, fields

import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.data.footers import check_counts, is_list
from stem_torchrec.data.listing import RowGroup, read_footers
from stem_torchrec.data.schema import Schema, SparseFeature
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.file_systems import g_pathmgr

_TOGETHER = (["a sparse feature", "the group"], ["a dense feature", "the weights of a feature"])
"""What a column can be at once: the user who is a feature, and a price that also weighs another feature."""


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
        """The columns of `schema`, of its sparse features and labels only those named, if any are.

        Raises UserError for a name that the schema lacks or that is given twice, and for a column that cannot serve in
        two ways, as a label cannot be a feature.
        """
        sparse, dense = {feature.name: feature for feature in schema.sparse_features}, schema.dense_features
        for kind, names, known in (
            ("sparse feature", features, [feature.name for feature in schema.sparse_features]),
            ("label", labels, schema.labels),
            ("dense feature", (), dense),
        ):
            if not known and kind != "dense feature":
                raise UserError(f"schema.json names no {kind}; a log needs one. datasets/README.md describes the file.")
            for name in names:
                if name not in known:
                    raise UserError(f"the log has no {kind} {name!r}, only {', '.join(known)}{nearest(name, known)}")
            for each in (names, known):
                if len(set(each)) < len(each):
                    raise UserError(f"a {kind} is named twice in {', '.join(each)}.")
        selected = cls(
            sparse={name: sparse[name] for name in features or sparse},
            dense=dense,
            labels=tuple(labels or schema.labels),
            group=schema.group,
        )
        selected.check_roles()
        return selected

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

    def check_roles(self) -> None:
        """Raises UserError for a column that serves in two ways, of which one excludes the other."""
        roles = {
            "a label": self.labels,
            "a sparse feature": self.sparse,
            "a dense feature": self.dense,
            "the weights of a feature": self.weights.values(),
            "the group": [self.group],
        }
        for name in self.names:
            of_name = [role for role, names in roles.items() if name in names]
            if len(of_name) > 1 and of_name not in _TOGETHER:
                raise UserError(
                    f"schema.json names the column {name!r} as {' and as '.join(of_name)}, which it cannot be at once; "
                    "leave it out of one. datasets/README.md describes the file."
                )

    @property
    def weights(self) -> dict[str, str]:
        """The column of weights by sparse feature, of the features that have one."""
        return {name: feature.weights for name, feature in self.sparse.items() if feature.weights is not None}

    def group_type(self, types: pa.Schema) -> pa.DataType:
        """The type in which the group is read from files of these types: any but uint64, as hashes are, fits int64."""
        unsigned = self.group not in self.sparse and pa.types.is_uint64(types.field(self.group).type)
        return pa.uint64() if unsigned else pa.int64()

    @property
    def names(self) -> list[str]:
        """Every column once."""
        groups = [self.group] if self.group else []
        return list(dict.fromkeys([*self.sparse, *self.weights.values(), *self.dense, *self.labels, *groups]))


def find_row_groups(folder: str, split: str, schema: Schema, columns: Columns) -> list[RowGroup]:
    """The row groups of the Parquet files below `folder/split`, in the order of their paths.

    Reads every footer. Raises UserError for a folder without files, a file that is truncated or left out (see
    listing.py), a column that is missing or has the wrong type, and counts that are not those in schema.json.
    """
    split_folder = posixpath.join(folder, split)
    footers = read_footers(split_folder) if g_pathmgr.isdir(split_folder) else {}
    if not footers:
        raise UserError(f"{split_folder} holds no .parquet file; datasets/README.md shows the layout of a log.")
    row_groups: list[RowGroup] = []
    kinds: list[dict[str, str]] = []
    for name, metadata in footers.items():
        path = posixpath.join(split_folder, name)
        types = metadata.schema.to_arrow_schema()
        check_types(types, path, columns)
        kinds.append(_kinds(types, columns))
        for column, kind in sorted(kinds[-1].items() ^ kinds[0].items()):
            raise UserError(
                f"column {column!r} is {kind} in only one of {path} and {next(iter(footers))}; give it the same type "
                "in all files."
            )
        first_row = 0
        for index in range(metadata.num_row_groups):
            rows = metadata.row_group(index).num_rows
            if rows:
                row_groups.append(RowGroup(path, name, index, first_row, rows, metadata))
            first_row += rows
    if not row_groups:
        raise UserError(f"the .parquet files of {split_folder} hold no rows.")
    if split in schema.splits:
        check_counts(split_folder, row_groups, schema.splits[split], columns.labels)
    return row_groups


def _kinds(types: pa.Schema, columns: Columns) -> dict[str, str]:
    """What the rows of all files must have in common, by column."""
    kinds = {name: "a list" for name in columns.sparse if is_list(types.field(name).type)}
    if columns.group is not None and columns.group_type(types) == pa.uint64():
        kinds[columns.group] = "uint64"
    return kinds


def check_types(schema: pa.Schema, path: str, columns: Columns) -> None:
    """Raises UserError for a column of `columns` that `schema` lacks or holds in a type that does not serve."""
    for name in columns.names:
        count = schema.names.count(name)
        if not count and any(part.startswith(f"{name}=") for part in path.split("/")):
            raise UserError(f"{path} has the column {name!r} only in the name of its folder; write it into the file.")
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
