"""Earlier exposures of KuaiRand-Pure, rebuilt from published sequences of users, as the training part of a log."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from kuairand_csv import VIDEO_FILE, read_csv

from stem_torchrec.runtime.errors import UserError

POSITION = "pos_in_history"
"""Column with the position of an exposure in its user's history."""
LABELS = ("long_view", "is_like")
"""Feedback columns of the sequences."""
UNKNOWN = ("tab", "hour", "video_age_bucket")
"""Features that need the time or the page of an exposure, which the sequences lack."""


def read_exposures(path: Path, raw: Path, labels: tuple[str, ...]) -> pa.Table:
    """Reads user_id, video_id, `labels` and duration_ms, approximately in the order of time.

    Rows are sorted by their position in the user's history, as a share of the history's length. The duration is that of
    the video; wherever the standard log has a duration, the two are equal.

    Raises UserError if the file cannot be read, lacks a column, or has an empty cell or a label other than 0 and 1.
    """
    names = ["user_id", "video_id", POSITION, *labels]
    try:
        missing = set(names) - set(pq.read_schema(path).names)
        if missing:
            raise UserError(f"--reconstructed {path} has no column {min(missing)!r}; it needs {', '.join(names)}.")
        table = pq.read_table(path, columns=names)
        table = pa.table({name: _whole_numbers(table[name], name) for name in names})
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"--reconstructed {path} cannot be read ({reason}); download it again.") from error
    for name in names:
        if table[name].null_count:
            raise UserError(f"--reconstructed {path} has an empty cell in column {name!r}; remove that row.")
    for name in labels:
        wrong = table[name].filter(pc.invert(pc.is_in(table[name], pa.array([0, 1]))))
        if len(wrong):
            raise UserError(f"--reconstructed {path} has {wrong[0]} in column {name!r}; a label is 0 or 1.")
    videos = read_csv(raw / VIDEO_FILE, {"video_id": pa.int64(), "video_duration": pa.int64()})
    video = pc.index_in(table["video_id"], videos["video_id"].combine_chunks())
    table = table.append_column("duration_ms", videos["video_duration"].take(video))
    return table.take(pa.array(_order(table))).drop_columns([POSITION])


def replace_training_part(log: pa.Table, rows: dict[str, int], exposures: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Returns the log with `exposures` as its training part, null in the other columns, and the rows of each split."""
    unknown = {name: pa.nulls(exposures.num_rows, log.schema.field(name).type) for name in log.column_names}
    columns = unknown | {name: exposures[name] for name in exposures.column_names}
    train = pa.table({name: columns[name] for name in log.column_names})
    return pa.concat_tables([train, log.slice(rows["train"])]), rows | {"train": train.num_rows}


def _whole_numbers(cells: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    try:
        return cells.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise pa.ArrowInvalid(f"column {name!r}: {error}") from error


def _order(table: pa.Table) -> np.ndarray:
    user, position = table["user_id"].to_numpy(), table[POSITION].to_numpy()
    _, index, length = np.unique(user, return_inverse=True, return_counts=True)
    return np.lexsort((user, position / length[index]))
