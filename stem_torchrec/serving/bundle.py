"""A bundle: an exported run that scores rows, in one process, without a process group, TorchRec or FBGEMM."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from stem_torchrec.calibration.calibration_file import CALIBRATION_FILE, read_calibration
from stem_torchrec.calibration.curves import Curve, calibrate
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import load_schema
from stem_torchrec.expressions.expression import columns_of
from stem_torchrec.expressions.value_types import ValueType
from stem_torchrec.preparation.transforms import Transforms, apply_transforms, read_transforms
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import PathOption, checked_path
from stem_torchrec.serving.inputs import check_names, check_raw, to_inputs
from stem_torchrec.serving.manifest import TABLES_FILE, Manifest, read_manifest
from stem_torchrec.serving.program import Program, load_program
from stem_torchrec.serving.table_file import open_tables

ROWS_AT_ONCE = 4096
"""Rows that the program takes at once, which bounds the memory of its layers."""
_ATTEMPTS = 5
"""How often a folder is read that is replaced meanwhile."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that `load_bundle` has opened.

    Several threads may call `score` at once; the tables are memory that is mapped from the bundle's file, so the files
    must stay as they are while it is used.
    """

    folder: Path
    manifest: Manifest
    columns: Columns
    """The columns of the log that the model reads, without labels."""
    transforms: Transforms | None
    """From raw columns to those of the log; None for a log that was not made by stem-prepare."""
    program: Program
    tables: list[Tensor]
    curves: Mapping[str, Curve]
    """The calibration of the tasks that have one, by task."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order of the columns that `score` returns."""
        return self.manifest.tasks

    @cached_property
    def raw_types(self) -> Mapping[str, ValueType]:
        """The types of the raw columns that `score` reads, by name; empty if it reads the columns of the log."""
        if self.transforms is None:
            return {}
        read = dict.fromkeys(name for tree in self.transforms.columns.values() for name in columns_of(tree))
        return {name: self.transforms.types[name] for name in read}

    @cached_property
    def input_columns(self) -> tuple[str, ...]:
        """The names of the columns that `score` reads."""
        if self.transforms is not None:
            return tuple(self.raw_types)
        return tuple(dict.fromkeys(map(self.columns.column_of, self.columns.names)))

    def score(self, rows: pa.RecordBatch | pa.Table, *, first_row: int = 0, calibrated: bool = True) -> pa.Table:
        """The prediction of each task, as a column of float32, for each row in its order.

        A probability, or the expected number or level of a label that is one (`manifest.kinds`), in the label's unit.

        Args:
            rows: raw columns as `raw_types` has them, or those of the log if that is empty; others are not read. A
                missing value is null, and gets what it got in training, as does one that training has not seen.
            first_row: the number of the first row in errors.
            calibrated: whether `curves` are applied to what the model predicts.

        Raises UserError for a column that is missing or of another type, and DataError for a value that training would
        refuse, with its row.

        Example::

            bundle = load_bundle("bundles/adult")
            bundle.score(pa.table({"age": [39, None], "education": ["Bachelors", "?"]}))
            # income   never_married
            # 0.31     0.08
            # 0.12     0.44
        """
        check_names(rows.schema, self.input_columns)
        batches = _batches(rows.select(list(self.input_columns)))
        parts = [self._scored(batch, first_row + start) for start, batch in batches]
        scores = torch.cat(parts) if parts else torch.empty(0, len(self.tasks))
        columns = {task: scores[:, i].numpy() for i, task in enumerate(self.tasks)}
        for task, curve in self.curves.items() if calibrated else ():
            columns[task] = calibrate(columns[task], curve).astype(np.float32)
        return pa.table(columns)

    def _scored(self, batch: pa.RecordBatch, first_row: int) -> Tensor:
        """Probabilities (B, T)."""
        if self.transforms is not None:
            check_raw(batch, self.raw_types, first_row=first_row)
            batch = apply_transforms(self.transforms, batch)
        inputs = to_inputs(batch, self.columns, first_row=first_row)
        with torch.inference_mode():
            return self.program(inputs.dense, inputs.values, inputs.offsets, inputs.weights, self.tables)


def load_bundle(path: str | Path, *, compiled: bool | None = None, verify: bool | None = None) -> Bundle:
    """Opens a bundle that `stem-export` wrote, whole also while deltas put another in its place.

    Args:
        path: its folder.
        compiled: whether to use the compiled program; by default if the bundle has one for this machine.
        verify: whether to read all tables for their checksum; by default if they have up to 1 GiB.

    Raises UserError for a folder that is no bundle, FormatError for one in a newer format, and DamagedError for a file
    that is missing or was changed.
    """
    folder = Path(checked_path(str(path), PathOption("folder", local=True)))
    for attempt in range(_ATTEMPTS):
        before, is_last = _identity(folder), attempt == _ATTEMPTS - 1
        try:
            bundle = _load(folder, compiled=compiled, verify=verify)
        except UserError:
            if is_last or _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return bundle
    raise UserError(f"{folder} was replaced {_ATTEMPTS} times while it was loaded; load it again in a while.")


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one of its name; None if it does not exist."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _load(folder: Path, *, compiled: bool | None, verify: bool | None) -> Bundle:
    manifest = read_manifest(folder, verify=verify)
    columns = replace(Columns.select(load_schema(str(folder))), labeled=False)
    curves: Mapping[str, Curve] = {}
    if CALIBRATION_FILE in manifest.files:
        curves = read_calibration(folder / CALIBRATION_FILE, weights=None).curves
    return Bundle(
        folder,
        manifest,
        columns,
        read_transforms(folder) if manifest.raw else None,
        load_program(folder, manifest, compiled=compiled),
        open_tables(folder / TABLES_FILE, manifest.tables, manifest.precision),
        {task: curve for task, curve in curves.items() if task in manifest.tasks},
    )


def _batches(rows: pa.RecordBatch | pa.Table) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows in batches that are scored at once, each with the number of its first row."""
    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    start = 0
    for part in range(0, table.num_rows, ROWS_AT_ONCE):
        for batch in table.slice(part, ROWS_AT_ONCE).combine_chunks().to_batches():
            yield start, batch
            start += batch.num_rows
