"""What a bundle takes from the run's log: the columns that are read, and the transforms that make them of raw rows."""

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stem_torchrec.checkpoints.compatibility import Rows
from stem_torchrec.config import TrainConfig
from stem_torchrec.config.formats import with_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.footers import contents
from stem_torchrec.data.new_log import TRANSFORMS_FILE, TRANSFORMS_FORMAT, VOCABULARY
from stem_torchrec.data.schema import Schema, load_schema
from stem_torchrec.preparation.transforms import read_transforms, vocabularies_of
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.paths import write_json

_SECTIONS = ("features", "weights", "dense")


def folder_of_log(
    log: str | None, trained: TrainConfig, *, schema: Schema, columns: Columns, rows: Rows
) -> Path | None:
    """The folder of the log, None for the synthetic log, which has no transforms.

    The sizes of tables do not tell next week's log, whose ids mean other values. So the rows are compared: those that
    schema.json counts, and, where the folder has the files of a split, those that their footers describe.

    Args:
        log: `--log`.
        trained: the configuration of the run.
        schema: of the run.
        columns: that the run reads.
        rows: what the run has recorded of its rows, `StoredMetrics.rows`; empty if it has not ended.

    Raises UserError for a folder that is missing, and for another log.
    """
    path = log or trained.data.path
    if path is None:
        return None
    fix = "give a copy of its schema.json, transforms.json and vocabulary/ as --log"
    if "://" in path or not Path(path).is_dir():
        raise UserError(f"the log {path} is not a folder of this machine; {fix}.")
    of_log = replace(load_schema(path), labels=schema.labels, label_weights=schema.label_weights)
    other = f"{path} is not the log that the run was trained on"
    try:
        present = Columns.select(of_log, features=tuple(columns.sparse), labels=columns.labels, reader="the run")
    except UserError as error:
        raise UserError(f"{other} ({reason_of(error)}); {fix}.") from error
    other_rows = _other_rows(path, of_log, columns=present, schema=schema, rows=rows)
    if differences := [*present.differences(columns), *other_rows]:
        raise UserError(f"{other}: {', '.join(differences)}; {fix}.")
    return Path(path)


def _other_rows(path: str, of_log: Schema, *, columns: Columns, schema: Schema, rows: Rows) -> Iterator[str]:
    """What tells that the rows of the log are not those of the run, in words."""
    for split, counts in schema.splits.items():
        present = of_log.splits.get(split, counts)
        if present.rows != counts.rows:
            yield f"{split} has {present.rows:,} rows, not {counts.rows:,}"
        for label, counted in counts.labels.items():
            positives = present.labels.get(label, counted).positives
            if positives != counted.positives:
                yield f"{split} has {positives:,} labels 1 of {label!r}, not {counted.positives:,}"
    for split, recorded in rows.items():
        if not (Path(path) / split).is_dir():
            continue
        current = contents(find_row_groups(path, split, of_log, columns, needs_labels=False))
        if entry := next((entry for entry, value in recorded.items() if current.get(entry, value) != value), ""):
            yield f"{split}/ has other rows (not the same: {entry})"


def schema_of_bundle(schema: Schema, columns: Columns, tasks: Sequence[str]) -> Schema:
    """The schema of a run without what a bundle does not read: labels, weights and groups of rows, and its splits."""
    return Schema(
        sparse_features=tuple(columns.sparse.values()),
        labels=tuple(each for each in columns.label_entries if each.name in tasks),
        dense_features=schema.dense_features,
        description=schema.description,
    )


def copy_transforms(log: Path, folder: Path, columns: Columns) -> list[str]:
    """Copies transforms.json and its vocabularies into a bundle; returns the files, none if the log has none.

    Args:
        log: folder of the log.
        folder: the bundle.
        columns: that the bundle reads.

    Raises UserError if transforms.json is damaged, or lacks a column that the bundle reads.
    """
    source = log / TRANSFORMS_FILE
    if not source.exists():
        return []
    transforms, content = read_transforms(log), parse_json(source.read_bytes())
    needed = {columns.column_of(name) for name in columns.names}
    if missing := sorted(needed - transforms.columns.keys()):
        raise UserError(f"{source} does not make the column {missing[0]!r}, which the run reads; give another --log.")
    write_json(folder / TRANSFORMS_FILE, cut_transforms(content, needed))
    (folder / VOCABULARY).mkdir()
    names = {name for column in needed for name in vocabularies_of(transforms.columns[column])}
    vocabularies = [f"{VOCABULARY}/{name}.parquet" for name in sorted(names)]
    for file in vocabularies:
        shutil.copyfile(log / file, folder / file)
    return [TRANSFORMS_FILE, *vocabularies]


def cut_transforms(content: Mapping[str, Any], needed: Collection[str]) -> dict[str, Any]:
    """What transforms.json of a bundle has: of that of the log, the columns that are needed."""
    cut = {section: {n: tree for n, tree in content[section].items() if n in needed} for section in _SECTIONS}
    return with_format({"columns": content["columns"]} | cut, TRANSFORMS_FORMAT)


def columns_in(content: Mapping[str, Any]) -> set[str]:
    """The columns that a transforms.json makes."""
    return {name for section in _SECTIONS for name in content[section]}
