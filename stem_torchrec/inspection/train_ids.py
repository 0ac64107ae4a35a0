"""How often each id stands in the rows that a run was trained on."""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.data.arrays import bags_of
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.folder import data_folder
from stem_torchrec.data.rows import read_row_group
from stem_torchrec.data.schema import load_schema
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.file_systems import g_pathmgr


@dataclass(frozen=True)
class TrainIds:
    """The ids of the training rows of a run."""

    counts: Mapping[str, NDArray[np.int64]]
    """By feature, how often each id stands in the rows, (N,); {} where they cannot be read."""
    note: str
    """Which rows these are, or why they cannot be read."""


def count_ids(run: RunRecord, *, rows: int | None) -> TrainIds:
    """Counts the ids of the training split of the run's own log; one row group is in memory at a time.

    Args:
        run: the run.
        rows: stops behind the row group with the last of so many rows; None for all.
    """
    path = run.config.data.path
    if path is not None and not g_pathmgr.isdir(posixpath.join(path, "train")):
        return TrainIds({}, f"ids are not counted, as there is no {path}/train any more")
    path = path or data_folder(run.config.data)
    columns = Columns(sparse=run.columns.sparse, dense=(), labels=(), group=None, files=run.columns.files)
    counts = {name: np.zeros(feature.num_embeddings, np.int64) for name, feature in columns.sparse.items()}
    read = 0
    try:
        row_groups = find_row_groups(path, "train", load_schema(path), columns, needs_labels=False)
        for row_group in row_groups:
            if rows is not None and read >= rows:
                break
            table = read_row_group(row_group, columns, skip=run.config.data.skipped_share is not None)
            for name, of_feature in counts.items():
                ids, _ = bags_of(table.column(name))
                np.add.at(of_feature, ids, 1)
            read += row_group.rows
    except UserError as error:
        return TrainIds({}, f"ids are not counted, as {path} is not the log of the run any more ({reason_of(error)})")
    total = sum(row_group.rows for row_group in row_groups)
    which = f"the {total:,} training rows" if read == total else f"the first {read:,} of {total:,} training rows"
    return TrainIds(counts, f"ids are counted in {which} of {path}")
