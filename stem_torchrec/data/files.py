"""The row groups of a split that have the columns that a run reads."""

import posixpath
from dataclasses import replace
from typing import Any

from stem_torchrec.data.columns import Columns
from stem_torchrec.data.footers import check_counts
from stem_torchrec.data.listing import RowGroup, read_footers
from stem_torchrec.data.schema import Schema
from stem_torchrec.data.type_checks import check_types, kinds_of
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.file_systems import g_pathmgr


def find_row_groups(
    folder: str, split: str, schema: Schema, columns: Columns, *, needs_labels: bool = True
) -> list[RowGroup]:
    """The row groups of the Parquet files below `folder/split`, in the order of their paths.

    Reads every footer.

    Args:
        folder: of the log.
        split: folder below it.
        schema: of the log.
        columns: to read.
        needs_labels: whether files without any label are refused, and not only those that lack some; `with_labels`
            tells which they are.

    Raises UserError for a folder without files, a file that is truncated or left out (see listing.py), a column that is
    missing or has the wrong type, and counts that are not those in schema.json.
    """
    split_folder = posixpath.join(folder, split)
    footers = read_footers(split_folder) if g_pathmgr.isdir(split_folder) else {}
    if not footers:
        raise UserError(f"{split_folder} holds no .parquet file; datasets/README.md shows the layout of a log.")
    types = {name: metadata.schema.to_arrow_schema() for name, metadata in footers.items()}
    if not needs_labels:
        present = {name for of_file in types.values() for name in of_file.names}
        columns = replace(columns, labeled=any(columns.column_of(label) in present for label in columns.labels))
    row_groups: list[RowGroup] = []
    for name, metadata in footers.items():
        path = posixpath.join(split_folder, name)
        check_types(types[name], path, columns)
        first_row = 0
        for index in range(metadata.num_row_groups):
            rows = metadata.row_group(index).num_rows
            if rows:
                row_groups.append(RowGroup(path, name, index, first_row, rows, metadata))
            first_row += rows
    _check_kinds(split_folder, types, columns)
    if not row_groups:
        raise UserError(f"the .parquet files of {split_folder} hold no rows.")
    if split in schema.splits:
        labels = {label: columns.column_of(label) for label in columns.labels} if columns.labeled else {}
        check_counts(split_folder, row_groups, schema.splits[split], labels)
    return row_groups


def _check_kinds(folder: str, types: dict[str, Any], columns: Columns) -> None:
    """Raises UserError for a column that only some of the files have as lists, as text or as uint64."""
    first: dict[str, tuple[str, str]] = {}
    for name, schema in types.items():
        for column, kind in sorted(kinds_of(schema, columns).items()):
            expected, of_file = first.setdefault(column, (kind, name))
            if kind != expected:
                shown = next(each for each in (kind, expected) if each not in ("int64", "no list"))
                raise UserError(
                    f"column {column!r} is {shown} in only one of {posixpath.join(folder, name)} and {of_file}; give "
                    "it the same type in all files."
                )


def with_labels(columns: Columns, row_groups: list[RowGroup]) -> Columns:
    """The columns as the files have them: without labels where they have none."""
    names = row_groups[0].metadata.schema.to_arrow_schema().names
    return replace(columns, labeled=any(columns.column_of(label) in names for label in columns.labels))
