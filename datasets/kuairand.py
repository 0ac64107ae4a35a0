"""Writes a Parquet log for stem_torchrec from the CSV files of KuaiRand-Pure.

python datasets/kuairand.py --raw KuaiRand-Pure --out data/kuairand_pure

Vocabularies and bucket edges come from the training part alone, and no feature uses what the exposure itself
produced. datasets/README.md documents the split and the files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro
from annotated_types import Interval
from kuairand_csv import FEEDBACK, KEY, USER_COLUMNS, VIDEO_COLUMNS, drop_repeats, read_log, read_users, read_videos
from kuairand_exposures import LABELS, UNKNOWN, read_exposures, replace_training_part
from kuairand_features import build_vocabulary, encode, exposure_values
from tabulate import tabulate
from tqdm import tqdm

from stem_torchrec.config.command_line import parse_arguments
from stem_torchrec.data.column_types import items
from stem_torchrec.data.new_log import SPLITS, VOCABULARY, check_out, new_log
from stem_torchrec.data.schema import LabelCounts, Schema, SparseFeature, Split, save_schema
from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.path_options import PathOption

# Columns known only after the exposure. date and hourmin are the time at which the row was logged, after the play: of
# the rows shown at minute 40 to 49, those logged in the next hour have 43 % long views and the others 29 %.
# video_features_statistic_pure.csv is not read at all: its counts include the exposures to predict.
FORBIDDEN = (*FEEDBACK, "play_time_ms", "profile_stay_time", "comment_stay_time", "date", "hourmin")

EXPOSURE_FEATURES = ("user_id", "video_id", "tab", "hour", "duration_bucket", "video_age_bucket")
FEATURES = (*EXPOSURE_FEATURES, *(name for name in VIDEO_COLUMNS if name != "upload_dt"), *USER_COLUMNS)

ROW_GROUP_SIZE = 65_536


Day = Annotated[int, Interval(ge=10_000_101, le=99_991_231)]
"""A day as yyyymmdd."""


@dataclass(frozen=True)
class Options:
    """What to read, how to split it and where to write."""

    raw: Annotated[Path, PathOption("folder", local=True)]
    """Folder with the CSV files of KuaiRand-Pure, or the folder above it, which contains `data/`."""
    out: Annotated[Path, PathOption("folder", writes=True, local=True)]
    """Folder to write; it appears once it is complete."""
    train_until: Day = 20220503
    """Last day of the training part, as yyyymmdd."""
    valid_until: Day = 20220505
    """Last day of the validation part; later days are the test part."""
    labels: str = "long_view,is_like"
    """Feedback columns to predict, separated by commas."""
    features: str | None = None
    """Features to write, separated by commas; by default all."""
    min_count: Annotated[int, Interval(ge=1, le=10**9)] = 2
    """A value that occurs fewer times in the training part gets id 0, like an unseen one."""
    reconstructed: Annotated[Path, PathOption("file", local=True)] | None = None
    """Parquet file of earlier exposures, rebuilt from sequences of users: user_id, video_id, pos_in_history and the
    labels. They replace the log's days as the training part; the log then has no tab, hour and video_age_bucket."""
    overwrite: bool = False
    """Replaces an existing log in `out`, and nothing but a log."""
    take_over: bool = False
    """Takes `out` from another process that makes the same log."""


def main() -> None:
    """Writes the log that the command line describes and prints its sizes."""
    print(write_log(parse_arguments(Options(tyro.MISSING, tyro.MISSING), description=__doc__ or "")))


def write_log(options: Options) -> str:
    """Writes the log to `options.out` and returns a summary to print."""
    known = FEATURES if options.reconstructed is None else tuple(name for name in FEATURES if name not in UNKNOWN)
    labels = split_names(options.labels, "--labels", FEEDBACK if options.reconstructed is None else LABELS)
    features = known if options.features is None else split_names(options.features, "--features", known)
    check_out(options.out, overwrite=options.overwrite)
    log, rows, values, description = read_values(options, labels)
    train, valid = slice(rows["train"]), slice(rows["train"], rows["train"] + rows["valid"])

    with new_log(options.out, overwrite=options.overwrite, take_over=options.take_over) as folder:
        (folder / VOCABULARY).mkdir(parents=True)
        columns, sizes, unseen = {}, [], []
        for name in tqdm(features, desc="features", disable=None):
            vocabulary = build_vocabulary(values[name][train], options.min_count)
            pq.write_table(vocabulary, folder / VOCABULARY / f"{name}.parquet")
            columns[name] = encode(values[name], vocabulary)
            sizes.append(SparseFeature(name, vocabulary.num_rows + 1))
            unseen.append(pc.mean(pc.equal(items(columns[name][valid]), 0)).as_py())
        columns |= {name: log[name].cast(pa.int8()) for name in labels}
        # user_id maps every unseen user to 0, so gAUC needs the raw id; time_ms allows other splits.
        columns |= {"group_user_id": log["user_id"], "time_ms": log["time_ms"]}
        splits = write_splits(pa.table(columns), rows, labels, folder)
        schema = Schema(tuple(sizes), labels, splits, group="group_user_id", description=description)
        save_schema(schema, str(folder))
    return summary(schema, unseen)


def split_names(text: str, option: str, offered: tuple[str, ...]) -> tuple[str, ...]:
    """Splits a comma separated option; raises UserError for a name that is not offered."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"{option} is {text!r} and names no column; choose from {', '.join(offered)}.")
    for name in names:
        if name in FORBIDDEN and name not in offered:
            raise UserError(f"{option} names {name!r}, which is known only after the exposure; remove it.")
        if name not in offered:
            hint = nearest(name, offered) or f"; choose from {', '.join(offered)}."
            raise UserError(f"{option} names {name!r}, which is not among its columns{hint}")
    return names


def read_values(
    options: Options, labels: tuple[str, ...]
) -> tuple[pa.Table, dict[str, int], dict[str, pa.ChunkedArray], str]:
    """Returns the log ordered by split, the rows of each split, the values of each feature, and a description."""
    raw = options.raw / "data" if (options.raw / "data").is_dir() else options.raw
    everything = read_log(raw, labels)
    log, rows = split_by_day(drop_repeats(everything), options.train_until, options.valid_until)
    repeats = everything.num_rows - log.num_rows
    training = f"train up to {options.train_until}"
    if options.reconstructed is not None:
        exposures = read_exposures(options.reconstructed, raw, labels)
        log, rows = replace_training_part(log, rows, exposures)
        training = f"train reconstructed from sequences of users ({options.reconstructed.name})"
    users, without_user = left_join(log, read_users(raw), "user_id")
    videos, without_video = left_join(log, read_videos(raw), "video_id")
    values = exposure_values(log, videos.pop("upload_dt"), rows["train"]) | videos | users
    description = (
        f"KuaiRand-Pure, standard log, split by day: {training}, valid up to {options.valid_until}, test later; "
        f"{repeats} of {everything.num_rows} rows dropped as repeats of {', '.join(KEY)}; id 0 is null or occurs "
        f"fewer than {options.min_count} times in train; {without_user} rows lack user features and "
        f"{without_video} video features."
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
                f"and train/ has the days up to {train_until}."
            )
    order = [("part", "ascending"), ("time_ms", "ascending")]
    return log.append_column("part", pa.array(part)).sort_by(order), rows


def left_join(log: pa.Table, table: pa.Table, key: str) -> tuple[dict[str, pa.ChunkedArray], int]:
    """Returns the other columns of `table` for every row of the log, and the number of rows without a match."""
    index = pc.index_in(log[key], table[key].combine_chunks())
    return {name: table[name].take(index) for name in table.column_names if name != key}, index.null_count


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
    """Returns tables of the splits and features; `unseen` is the share of id 0 in valid of each feature."""
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
        tabulate(splits, headers=("split", "rows", *schema.label_names)),
        tabulate(features, headers=("feature", "vocabulary", "id 0 in valid"), colalign=right),
    )
    return "\n\n".join((schema.description, *tables))


if __name__ == "__main__":
    run_main(main)
