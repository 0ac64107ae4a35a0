"""The CSV files of KuaiRand-Pure: their names and columns, and a reader whose errors name the file and the column."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
from tqdm import tqdm

from stem_torchrec.runtime.errors import UserError

LOG_FILES = "log_standard_*_pure.csv"
USER_FILE = "user_features_pure.csv"
VIDEO_FILE = "video_features_basic_pure.csv"

KEY = ("user_id", "video_id", "time_ms")
LOG_COLUMNS = dict.fromkeys((*KEY, "date", "duration_ms", "tab"), pa.int64())
FEEDBACK = (
    *("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate"),
    *("long_view", "is_profile_enter"),
)
USER_COLUMNS = {
    "user_active_degree": pa.string(),
    **dict.fromkeys(("is_lowactive_period", "is_live_streamer", "is_video_author"), pa.int64()),
    **dict.fromkeys(("follow_user_num_range", "fans_user_num_range", "friend_user_num_range"), pa.string()),
    "register_days_range": pa.string(),
    **{f"onehot_feat{i}": pa.int64() for i in range(18)},
}
VIDEO_COLUMNS = {
    "author_id": pa.int64(),
    "video_type": pa.string(),
    "upload_dt": pa.date32(),
    "upload_type": pa.string(),
    "music_id": pa.int64(),
    "music_type": pa.int64(),
    "tag": pa.list_(pa.int64()),
}


def read_log(folder: Path, labels: tuple[str, ...]) -> pa.Table:
    """Reads every log file of `folder` in the order of the names, which is that of the dates.

    Raises UserError if there is no log, or for a missing column, a malformed cell or a label other than 0, 1 and empty.
    """
    paths = sorted(folder.glob(LOG_FILES))
    if not paths:
        raise UserError(f"--raw {folder} has no {LOG_FILES}; unpack KuaiRand-Pure into it.")
    tables = []
    for path in paths:
        table = read_csv(path, LOG_COLUMNS | dict.fromkeys(labels, pa.int64()))
        for name in (*KEY, "date"):
            if table[name].null_count:
                raise UserError(f"{path} has an empty cell in column {name!r}; correct or remove that row.")
        for name in labels:
            wrong = table[name].filter(pc.invert(pc.is_in(table[name], pa.array([0, 1, None]))))
            if len(wrong):
                raise UserError(f"{path} has {wrong[0]} in column {name!r}; a label is 0, 1 or empty.")
        tables.append(table)
    return pa.concat_tables(tables)


def drop_repeats(log: pa.Table) -> pa.Table:
    """Keeps the first of the rows with the same user, video and time; about 3 % of the log are repeats."""
    numbered = log.append_column("row", pa.array(np.arange(log.num_rows)))
    first = numbered.group_by(KEY, use_threads=False).aggregate([("row", "min")])["row_min"]
    return log.take(first.sort())


def read_users(folder: Path) -> pa.Table:
    """Reads the features of every user."""
    return read_csv(folder / USER_FILE, {"user_id": pa.int64(), **USER_COLUMNS})


def read_videos(folder: Path) -> pa.Table:
    """Reads the features of every video."""
    return read_csv(folder / VIDEO_FILE, {"video_id": pa.int64(), **VIDEO_COLUMNS})


def read_csv(path: Path, types: dict[str, pa.DataType]) -> pa.Table:
    """Streams the columns named in `types` from a CSV file; an empty cell becomes null."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; unpack KuaiRand-Pure into its folder.")
    # Cells are read as strings and then cast, so that an error names the column and an integer may be written "4.0".
    options = csv.ConvertOptions(
        include_columns=list(types), column_types=dict.fromkeys(types, pa.string()), strings_can_be_null=True
    )
    tables = []
    try:
        with (
            pa.OSFile(str(path)) as source,
            tqdm(total=source.size(), desc=path.name, unit="B", unit_scale=True, disable=None) as progress,
        ):
            for batch in csv.open_csv(source, convert_options=options):
                tables.append(pa.table({name: _cast(batch[name], types[name], name) for name in types}))
                progress.update(source.tell() - progress.n)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        message = str(error.args[0]).splitlines()[0].rstrip(".")
        raise UserError(f"{path}: {message}; correct the file or download it again.") from error
    if not tables:
        raise UserError(f"{path} has a header but no rows; download it again.")
    return pa.concat_tables(tables)


def _cast(cells: pa.Array, type: pa.DataType, name: str) -> pa.Array:
    try:
        if pa.types.is_list(type):
            return pc.split_pattern(cells, ",").cast(type)
        return cells.cast(pa.float64()).cast(type) if pa.types.is_integer(type) else cells.cast(type)
    except pa.ArrowInvalid as error:
        raise pa.ArrowInvalid(f"column {name!r}: {error}") from error
