"""Writes a Parquet log for stem_torchrec from the CSV files of KuaiRand-Pure.

python datasets/kuairand.py --raw KuaiRand-Pure --out data/kuairand_pure

Vocabularies and bucket edges come from the training part alone, and no feature holds what the exposure
itself produced. datasets/README.md documents the split and the files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro
from kuairand_csv import FEEDBACK, KEY, USER_COLUMNS, VIDEO_COLUMNS, drop_repeats, read_log, read_users, read_videos
from tabulate import tabulate
from tqdm import tqdm

from stem_torchrec.cli import nearest, parse_arguments, run_main
from stem_torchrec.data.schema import SCHEMA_FILE, LabelCounts, Schema, SparseFeature, Split, save_schema
from stem_torchrec.errors import UserError

# Known only after the exposure. date and hourmin are when the row was logged, which is after the play: of the
# rows shown at minute 40 to 49, those logged in the next hour have 43 % long views and the others 29 %.
# video_features_statistic_pure.csv is not read at all: its counts include the exposures to predict.
FORBIDDEN = (*FEEDBACK, "play_time_ms", "profile_stay_time", "comment_stay_time", "date", "hourmin")

EXPOSURE_FEATURES = ("user_id", "video_id", "tab", "hour", "duration_bucket", "video_age_bucket")
FEATURES = (*EXPOSURE_FEATURES, *(name for name in VIDEO_COLUMNS if name != "upload_dt"), *USER_COLUMNS)

SPLITS = ("train", "valid", "test")
DURATION_BUCKETS = 20
AGE_EDGES = np.array([0, 1, 2, 3, 5, 7, 10, 14, 21, 30, 60, 90, 180, 365])  # days
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
BEIJING_MS = 8 * HOUR_MS
ROW_GROUP_SIZE = 65_536


@dataclass(frozen=True)
class Options:
    """What to read, how to split it and where to write."""

    raw: Path
    """Folder with the CSV files of KuaiRand-Pure, or the folder above it that holds `data/`."""
    out: Path
    """Folder to write; it appears when it is complete."""
    train_until: int = 20220503
    """Last day of the training part, as yyyymmdd."""
    valid_until: int = 20220505
    """Last day of the validation part; later days are the test part."""
    labels: str = "long_view,is_like"
    """Feedback columns to predict, separated by commas."""
    features: str = ",".join(FEATURES)
    """Features to write, separated by commas."""
    min_count: int = 2
    """A value that the training part holds fewer times gets id 0, like an unseen one."""
    overwrite: bool = False
    """Replace the log that `out` holds."""


def main() -> None:
    """Writes the log that the command line asks for and prints its sizes."""
    print(write_log(parse_arguments(Options(tyro.MISSING, tyro.MISSING), description=__doc__ or "")))


def write_log(options: Options) -> str:
    """Writes the log to `options.out` and returns a summary to print."""
    labels = split_names(options.labels, "--labels", FEEDBACK)
    features = split_names(options.features, "--features", FEATURES)
    check_out(options.out, options.overwrite)
    log, rows, values, description = read_values(options, labels)
    train, valid = slice(rows["train"]), slice(rows["train"], rows["train"] + rows["valid"])

    options.out.parent.mkdir(parents=True, exist_ok=True)
    # The log appears under its name in one step, when every file is complete.
    with TemporaryDirectory(dir=options.out.parent, prefix=f".{options.out.name}.") as scratch:
        folder = Path(scratch, "new")
        (folder / "vocabulary").mkdir(parents=True)
        columns, sizes, unseen = {}, [], []
        for name in tqdm(features, desc="features", disable=None):
            vocabulary = build_vocabulary(values[name][train], options.min_count)
            pq.write_table(vocabulary, folder / "vocabulary" / f"{name}.parquet")
            columns[name] = encode(values[name], vocabulary)
            sizes.append(SparseFeature(name, vocabulary.num_rows + 1))
            unseen.append(pc.mean(pc.equal(elements(columns[name][valid]), 0)).as_py())
        columns |= {name: log[name].cast(pa.int8()) for name in labels}
        # user_id maps every unseen user to 0, so gAUC needs the raw id; time_ms serves other splits.
        columns |= {"group_user_id": log["user_id"], "time_ms": log["time_ms"]}
        splits = write_splits(pa.table(columns), rows, labels, folder)
        schema = Schema(tuple(sizes), labels, splits, group="group_user_id", description=description)
        save_schema(schema, str(folder))
        if options.out.exists():
            options.out.rename(Path(scratch, "old"))
        folder.rename(options.out)
    return summary(schema, unseen)


def split_names(text: str, option: str, offered: tuple[str, ...]) -> tuple[str, ...]:
    """Splits a comma separated option; raises UserError for a name that is not offered."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"{option} is {text!r} and names no column; it takes some of {', '.join(offered)}.")
    for name in names:
        if name in FORBIDDEN and name not in offered:
            raise UserError(f"{option} names {name!r}, which is known only after the exposure; remove it.")
        if name not in offered:
            hint = nearest(name, offered) or f"; choose from {', '.join(offered)}."
            raise UserError(f"{option} names {name!r}, which is not among its columns{hint}")
    return names


def check_out(out: Path, overwrite: bool) -> None:
    """Raises UserError where `out` holds a log that may not be replaced, or anything else."""
    if not out.exists():
        return
    content = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    is_log = SCHEMA_FILE in content and content <= {*SPLITS, "vocabulary", SCHEMA_FILE}
    if content and not is_log:
        raise UserError(f"--out {out} holds other files than those of a log; name another folder.")
    if content and not overwrite:
        raise UserError(f"--out {out} holds a log already; --overwrite replaces it.")


def read_values(
    options: Options, labels: tuple[str, ...]
) -> tuple[pa.Table, dict[str, int], dict[str, pa.ChunkedArray], str]:
    """Returns the log in the order of its splits, their rows, every feature's values, and how it was made."""
    raw = options.raw / "data" if (options.raw / "data").is_dir() else options.raw
    everything = read_log(raw, labels)
    log, rows = split_by_day(drop_repeats(everything), options.train_until, options.valid_until)
    users, without_user = left_join(log, read_users(raw), "user_id")
    videos, without_video = left_join(log, read_videos(raw), "video_id")
    values = exposure_values(log, videos.pop("upload_dt"), rows["train"]) | videos | users
    description = (
        f"KuaiRand-Pure, standard log, split by day: train up to {options.train_until}, valid up to "
        f"{options.valid_until}, test later; {everything.num_rows - log.num_rows} of {everything.num_rows} rows "
        f"dropped as repeats of {', '.join(KEY)}; id 0 is null or occurs fewer than {options.min_count} times in "
        f"train; {without_user} rows lack user features and {without_video} video features."
    )
    return log, rows, values, description


def split_by_day(log: pa.Table, train_until: int, valid_until: int) -> tuple[pa.Table, dict[str, int]]:
    """Sorts the rows by split, then by time; returns them with the number of rows of each split."""
    date = log["date"].to_numpy()
    part = (date > train_until).astype(np.int8) + (date > max(train_until, valid_until))
    rows = {name: int((part == i).sum()) for i, name in enumerate(SPLITS)}
    for name, until in (("train", train_until), ("valid", valid_until)):
        if not rows[name]:
            raise UserError(
                f"--{name}-until {until} leaves {name}/ empty: the log covers {date.min()} to {date.max()}, "
                f"and train/ takes the days up to {train_until}."
            )
    order = [("part", "ascending"), ("time_ms", "ascending")]
    return log.append_column("part", pa.array(part)).sort_by(order), rows


def left_join(log: pa.Table, table: pa.Table, key: str) -> tuple[dict[str, pa.ChunkedArray], int]:
    """Returns the other columns of `table` for every row of the log, and how many rows it has nothing for."""
    index = pc.index_in(log[key], table[key].combine_chunks())
    return {name: table[name].take(index) for name in table.column_names if name != key}, index.null_count


def exposure_values(log: pa.Table, upload_dt: pa.ChunkedArray, train_rows: int) -> dict[str, pa.ChunkedArray]:
    """Returns the features of the exposure itself, all of them known when it begins.

    A bucket is named by its lower edge, so the vocabulary of a bucket feature lists its edges.
    """
    beijing = log["time_ms"].to_numpy() + BEIJING_MS
    # Pictures have length 0, which is not a short video.
    length = pc.if_else(pc.greater(log["duration_ms"], 0), log["duration_ms"], None)
    shares = [i / DURATION_BUCKETS for i in range(1, DURATION_BUCKETS)]
    edges = pc.quantile(length[:train_rows], q=shares, interpolation="lower").drop_null().to_numpy()
    age = pc.subtract(pa.array((beijing // DAY_MS).astype(np.int32)), upload_dt.cast(pa.int32()))
    return {
        **{name: log[name] for name in ("user_id", "video_id", "tab")},
        "hour": pa.chunked_array([beijing // HOUR_MS % 24]),
        "duration_bucket": bucket(length, np.unique([0, *edges])),
        "video_age_bucket": bucket(age, AGE_EDGES),
    }


def bucket(values: pa.ChunkedArray, edges: np.ndarray) -> pa.ChunkedArray:
    """Replaces a value by the largest edge that does not exceed it, or by the first edge; null stays null."""
    index = np.searchsorted(edges, pc.fill_null(values, 0).to_numpy(), side="right") - 1
    return pa.chunked_array([pa.array(edges[np.maximum(index, 0)], mask=values.is_null().to_numpy())])


def build_vocabulary(train: pa.ChunkedArray, min_count: int) -> pa.Table:
    """Numbers the values of the training part from 1, the most frequent first.

    Example::

        build_vocabulary(pa.chunked_array([[7, 9, 9, 5, 5, 3]]), 2)  # value [5, 9], id [1, 2], count [2, 2]
    """
    counts = pc.value_counts(elements(train).drop_null())
    table = pa.table({"value": counts.field("values"), "count": counts.field("counts")})
    table = table.filter(pc.field("count") >= min_count)
    table = table.sort_by([("count", "descending"), ("value", "ascending")])
    return table.add_column(1, "id", pa.array(np.arange(1, table.num_rows + 1, dtype=np.int32)))


def encode(values: pa.ChunkedArray, vocabulary: pa.Table) -> pa.ChunkedArray:
    """Maps values, or lists of values, to int32 ids: 0 where null, unseen or rare; a null list is empty."""
    known = vocabulary["value"].combine_chunks()
    ids = pc.fill_null(pc.add(pc.index_in(elements(values), known), 1), 0).cast(pa.int32())
    if not pa.types.is_list(values.type):
        return ids
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.chunked_array([pa.ListArray.from_arrays(offsets, ids.combine_chunks())])


def elements(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the values of a column, of all its lists if it holds lists."""
    return pc.list_flatten(column) if pa.types.is_list(column.type) else column


def write_splits(table: pa.Table, rows: dict[str, int], labels: tuple[str, ...], folder: Path) -> dict[str, Split]:
    """Writes a folder for every split that has rows and returns their sizes."""
    splits, start = {}, 0
    for name, count in rows.items():
        part, start = table.slice(start, count), start + count
        if not count:
            continue
        (folder / name).mkdir()
        pq.write_table(
            part, folder / name / "part-00000.parquet", row_group_size=ROW_GROUP_SIZE, write_page_checksum=True
        )
        counts = {label: LabelCounts(pc.sum(part[label]).as_py() or 0, part[label].null_count) for label in labels}
        splits[name] = Split(count, counts)
    return splits


def summary(schema: Schema, unseen: Sequence[float | None]) -> str:
    """Returns the tables of splits and features; `unseen` is the share of id 0 in valid, by feature."""
    splits = [
        (name, split.rows, *(f"{c.positives} ({c.positives / split.rows:.2%})" for c in split.labels.values()))
        for name, split in schema.splits.items()
    ]
    features = [
        (feature.name, feature.num_embeddings - 1, "" if share is None else f"{share:.2%}")
        for feature, share in zip(schema.sparse_features, unseen, strict=True)
    ]
    right = ("left", "right", "right")
    tables = (
        tabulate(splits, headers=("split", "rows", *schema.labels)),
        tabulate(features, headers=("feature", "vocabulary", "id 0 in valid"), colalign=right),
    )
    return "\n\n".join((schema.description, *tables))


if __name__ == "__main__":
    run_main(main)
