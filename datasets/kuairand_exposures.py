"""Earlier exposures of KuaiRand-Pure, rebuilt from published sequences of users, as the training part of a log."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from stem_torchrec.runtime.errors import UserError

POSITION = "pos_in_history"
"""Column with the position of an exposure in its user's history."""
LABELS = ("long_view", "is_like")
"""Feedback columns of the sequences."""
UNKNOWN = ("tab", "hour", "video_age_bucket")
"""Features that need the time or the page of an exposure, which the sequences lack."""
LOG_FILES = "log_standard_*_pure.csv"
VIDEO_FILE = "video_features_basic_pure.csv"


def settings_of_exposures(
    path: Path, raw: Path, folder: Path, labels: tuple[str, ...], *, train_until: int
) -> dict[str, Any]:
    """Writes the exposures as one more file of the log, and returns the fields of the spec that read it.

    In that file the day is 0 and the time is the place in the training part; no other columns are known than these,
    user, video, labels and the length of the video.

    Args:
        path: Parquet file of the exposures.
        raw: folder with the files of KuaiRand-Pure.
        folder: for the file.
        labels: of the log.
        train_until: last day of the standard log that is left out.

    Raises UserError as `read_exposures` does, and if `raw` lacks a file.
    """
    logs = sorted(raw.glob(LOG_FILES))
    if not logs:
        raise UserError(f"--raw {raw} has no {LOG_FILES}; unpack KuaiRand-Pure into it.")
    known = read_exposures(path, raw, labels)
    known = known.append_column("date", pa.array(np.zeros(known.num_rows, np.int64)))
    known = known.append_column("time_ms", pa.array(np.arange(known.num_rows)))
    header = logs[0].read_text().partition("\n")[0].strip().split(",")
    unknown = pa.nulls(known.num_rows, pa.string())
    columns = {name: known[name] if name in known.column_names else unknown for name in header}
    file = folder / "reconstructed_exposures.csv"
    csv.write_csv(pa.table(columns), file)
    return {
        "sources.log.files": [str(file), f"${{raw}}/{LOG_FILES}"],
        "split.time.train_until": 0,
        # Days are left out by the split and not by `where`: of repeats, the first may be of an earlier day.
        "split.time.gap": train_until,
        "keep": [],
        "description": f"KuaiRand-Pure, split by day; train reconstructed from sequences of users ({path.name}).",
    }


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
    videos = _video_lengths(raw / VIDEO_FILE)
    video = pc.index_in(table["video_id"], videos["video_id"].combine_chunks())
    table = table.append_column("duration_ms", videos["video_duration"].take(video))
    return table.take(pa.array(_order(table))).drop_columns([POSITION])


def _video_lengths(path: Path) -> pa.Table:
    """The length of each video in milliseconds."""
    names = ("video_id", "video_duration")
    try:
        # Some files write whole numbers as 4.0.
        table = csv.read_csv(
            path,
            convert_options=csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.float64())),
        )
        return pa.table({name: table[name].cast(pa.int64()) for name in names})
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = str(error.args[-1]).splitlines()[0].rstrip(".")
        raise UserError(f"{path} cannot be read ({reason}); correct the file or download it again.") from error


def _whole_numbers(cells: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    try:
        return cells.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise pa.ArrowInvalid(f"column {name!r}: {error}") from error


def _order(table: pa.Table) -> np.ndarray:
    user, position = table["user_id"].to_numpy(), table[POSITION].to_numpy()
    _, index, length = np.unique(user, return_inverse=True, return_counts=True)
    return np.lexsort((user, position / length[index]))
