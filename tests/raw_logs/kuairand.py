"""KuaiRand (kuairand.com): a log of short videos in parts, users and videos, in the versions Pure, 1K and 27K.

The real files write some whole numbers as floats (`9.0`), leave cells empty, and mean "unknown" by -124 and UNKNOWN.
About 2.5 % of the rows repeat user, video and `time_ms`. `date` and `hourmin` are those of the end of the play.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from raw_logs.draws import Array, effect, generator, label, skewed, some
from raw_logs.lines import blank, pick, text, whole_float, write_lines

Version = Literal["pure", "1k", "27k"]
DAY_MS = 86_400_000
MIDNIGHT_8_APRIL = 1_649_347_200_000  # 2022-04-08 00:00 in Beijing
PERIODS = {"4_08_to_4_21": (0, 14), "4_22_to_5_08": (14, 31)}
"""First day and the day after the last, counted from 8 April 2022."""
REPEATS = 0.025

_DEGREES = ["full_active", "high_active", "middle_active", "2_14_day_new", "low_active", "UNKNOWN"]
_RANGES = {
    "follow": ["500+", "(10,50]", "(250,500]", "(50,100]", "(150,250]", "(100,150]", "(0,10]", "0"],
    "fans": ["[10,100)", "[100,1k)", "[1,10)", "[1k,5k)", "0", "[5k,1w)", "[1w,10w)"],
    "friend": ["[5,30)", "[1,5)", "0", "250+", "[30,60)", "[60,120)", "[120,250)"],
}
_REGISTERED = ["730+", "366-730", "181-365", "91-180", "61-90", "31-60", "15-30", "8-14"]
_ONEHOT = (2, 7, 50, 1471, 15, 34, 3, 118, 454, 7, 5, 5, 2, 2, 2, 2, 2, 2)
_UPLOADS = ["LongImport", "Web", "ShortImport", "Kmovie", "LongPicture", "UNKNOWN", "PictureSet", "ShortCamera"]
_MUSIC_TYPES = (9, 4, 8, 7, 11)


def write_kuairand(folder: Path, rows: int, seed: int = 0, version: Version = "pure") -> None:
    """Writes the files of one version: about `rows` standard rows over all days, and 1 % of them at random beside."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = generator(seed, 0)
    users, videos = (
        max(rows // (3000 if version == "1k" else 50), 20),
        max(rows // (200 if version == "pure" else 3), 40),
    )
    author, duration = skewed(rng, videos, videos), np.round(rng.lognormal(10, 0.9, videos)).astype(np.int64)
    duration[some(rng, videos, 0.03)] = 0  # a picture
    _write_users(folder / f"user_features_{version}.csv", users, rng)
    _write_videos(folder / f"video_features_basic_{version}.csv", author, duration, rng, version)
    effects = effect(rng, users, np.arange(users)), effect(rng, videos, np.arange(videos)) - 0.3 * (duration > 20_000)
    for i, (period, days) in enumerate(PERIODS.items()):
        parts = ("_part1", "_part2") if version == "27k" else ("",)
        for j, part in enumerate(parts):
            size = round(rows * (0.4, 0.6)[i] / len(parts))
            path = folder / f"log_standard_{period}_{version}{part}.csv"
            _write_log(path, size, days, duration, effects, generator(seed, 1, i, j))
    path = folder / f"log_random_4_22_to_5_08_{version}.csv"
    _write_log(path, max(rows // 100, 10), (14, 31), duration, effects, generator(seed, 2), at_random=1)


def _write_log(
    path: Path,
    rows: int,
    days: tuple[int, int],
    duration: Array,
    effects: tuple[Array, Array],
    rng: np.random.Generator,
    at_random: int = 0,
) -> None:
    user = skewed(rng, rows, len(effects[0]), head=20)
    video = rng.integers(0, len(duration), rows) if at_random else skewed(rng, rows, len(duration), head=20)
    # The hours of the day differ: few rows at night.
    hour = np.clip(rng.normal(15, 5, rows), 0, 23.9)
    time = MIDNIGHT_8_APRIL + rng.integers(*days, rows) * DAY_MS + (hour * 3_600_000).astype(np.int64)
    time = np.sort(time)
    liking = effects[0][user], effects[1][video]
    long_view = label(rng, 0.31, *liking)
    click = np.maximum(long_view, label(rng, 0.2, *liking))
    play = np.where(long_view, duration[video] * rng.uniform(0.8, 2, rows), rng.exponential(5000, rows)).astype(
        np.int64
    )
    comment_time = np.where(some(rng, rows, 0.04), rng.integers(500, 60_000, rows), 0)
    logged = time + play + rng.integers(0, 5000, rows)
    day = (logged - MIDNIGHT_8_APRIL) // DAY_MS
    columns = {
        "user_id": user,
        "video_id": video,
        "date": np.where(day < 23, 20_220_408 + day, 20_220_501 + day - 23),
        "hourmin": (logged - MIDNIGHT_8_APRIL) // 3_600_000 % 24 * 100,
        "time_ms": time,
        "is_click": click,
        "is_like": label(rng, 0.02, *liking, within=click > 0),
        "is_follow": label(rng, 0.002, *liking, within=click > 0),
        "is_comment": label(rng, 0.004, *liking, within=comment_time > 0),
        "is_forward": label(rng, 0.002, *liking),
        "is_hate": label(rng, 0.001, -liking[0]),
        "long_view": long_view,
        "play_time_ms": play,
        "duration_ms": duration[video],
        "profile_stay_time": np.zeros(rows, np.int64),
        "comment_stay_time": comment_time,
        "is_profile_enter": label(rng, 0.005, *liking),
        "is_rand": np.full(rows, at_random),
        "tab": skewed(rng, rows, 15, head=1),
    }
    # A row that is logged twice: the second one stands later in the file and may differ in its feedback.
    twice = np.flatnonzero(some(rng, rows, REPEATS))
    columns = {name: np.concatenate([column, column[twice]])[: rows + len(twice)] for name, column in columns.items()}
    columns["is_like"][rows:] = 0
    order = np.argsort(np.concatenate([np.arange(rows), twice + rng.integers(1, 50, len(twice))]), kind="stable")
    write_lines(path, {name: column[order] for name, column in columns.items()})


def _write_users(path: Path, users: int, rng: np.random.Generator) -> None:
    degree, unknown = skewed(rng, users, len(_DEGREES), head=1), some(rng, users, 0.026)
    columns = {
        "user_id": np.arange(users),
        "user_active_degree": pick(_DEGREES, degree),
        "is_lowactive_period": np.zeros(users, np.int64),
        "is_live_streamer": np.where(some(rng, users, 0.2), 1, -124),
        "is_video_author": some(rng, users, 0.8).astype(np.int64),
    }
    for name, ranges in _RANGES.items():
        columns[f"{name}_user_num"] = skewed(rng, users, 2000)
        columns[f"{name}_user_num_range"] = pick(ranges, skewed(rng, users, len(ranges), head=2))
    columns["register_days"] = rng.integers(8, 3000, users)
    columns["register_days_range"] = pick(_REGISTERED, skewed(rng, users, len(_REGISTERED), head=1))
    for i, values in enumerate(_ONEHOT):
        numbers = skewed(rng, users, values)
        if i == 4:
            columns["onehot_feat4"] = whole_float(numbers, some(rng, users, 0.03))
        else:
            columns[f"onehot_feat{i}"] = whole_float(numbers, unknown) if i >= 12 else numbers
    write_lines(path, columns)


def _write_videos(path: Path, author: Array, duration: Array, rng: np.random.Generator, version: Version) -> None:
    videos = len(author)
    earliest = 0 if version == "pure" else -700  # Pure has videos of three days only.
    days = np.datetime64("2022-04-09") + rng.integers(earliest, 3, videos)
    first, second = skewed(rng, videos, 69), skewed(rng, videos, 69)
    tag = text(first)
    both = some(rng, videos, 0.3) & (first != second)
    tags = np.where(both, tag.to_numpy(zero_copy_only=False) + "," + text(second).to_numpy(zero_copy_only=False), tag)
    columns = {
        "video_id": np.arange(videos),
        "author_id": author * 7919 % 8_839_735,
        "video_type": pick(["NORMAL", "AD", "UNKNOWN"], np.searchsorted([0.99, 0.9995], rng.random(videos))),
        "upload_dt": np.datetime_as_string(days, unit="D"),
        "upload_type": pick(_UPLOADS, skewed(rng, videos, len(_UPLOADS), head=1)),
        "visible_status": whole_float(np.zeros(videos, np.int64)),
        "video_duration": whole_float(duration, duration == 0),
        "server_width": whole_float(np.where(some(rng, videos, 0.75), 720, 1280)),
        "server_height": whole_float(np.where(some(rng, videos, 0.7), 1280, 720)),
        "music_id": np.where(some(rng, videos, 0.03), 0, skewed(rng, videos, videos) * 98_765 + 4_000_000_000),
        "music_type": whole_float(np.array(_MUSIC_TYPES)[skewed(rng, videos, 5, head=1)], some(rng, videos, 0.027)),
        "tag": blank(tags, some(rng, videos, 0.013)),
    }
    write_lines(path, columns)
