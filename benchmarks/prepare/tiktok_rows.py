"""Drawn rows in the raw format of the short video challenge of ICME 2019, track 1: `final_track1_train.txt`.

Tab-separated integers without a header. The real file has 275,855,531 rows of 636,281 users and 27,342,248 videos;
28.3 % of the videos are watched to the end and 1.6 % are liked. -1 is an unknown city or music. What a video is follows
from its id, what a user is from the user's; only the device, the channel and the feedback vary.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FILE = "final_track1_train.txt"
COLUMNS = (
    *("uid", "user_city", "item_id", "author_id", "item_city", "channel"),
    *("finish", "like", "music_id", "device", "time", "duration_time"),
)
FIRST_TIME, DAYS = 1_571_000_000, 31
"""Start and length of the period in which the videos were published, in Unix seconds and days."""

_CHUNK = 1 << 16
_ROWS_PER_USER, _ROWS_PER_ITEM = 434, 10
_MOST_USERS, _MOST_ITEMS = 636_281, 3_000_000
_FINISH, _LIKE = 0.283, 0.0161
_CHANNELS = np.repeat(np.arange(5, dtype=np.uint8), (180, 64, 9, 2, 1))
"""The channel for each of 256 equally frequent numbers."""
_UNKNOWN = 0.03
"""Share of -1 among cities and music."""
_PAD = 0
"""Byte that fills a cell up to the width of its column; it is taken out of the lines."""


@dataclass(frozen=True)
class _Tables:
    """The text of each part of a line, by user, by video and by feedback, and how likely feedback is.

    They are the only memory that grows with the rows, up to 200 MB. Each text of a part has the same number of bytes
    and ends with a delimiter.
    """

    user: np.ndarray
    item: np.ndarray
    feedback: np.ndarray
    music: np.ndarray
    device: np.ndarray
    publication: np.ndarray
    user_finish: np.ndarray
    user_like: np.ndarray
    item_finish: np.ndarray
    item_like: np.ndarray


def write_tiktok(path: Path, rows: int, seed: int = 0) -> None:
    """Writes `rows` rows to `path`; the same rows and seed give the same bytes."""
    with path.open("wb") as file:
        for lines in tiktok_lines(rows, seed):
            file.write(lines)


def tiktok_lines(rows: int, seed: int = 0) -> Iterator[memoryview]:
    """Yields the text of the file, some lines at a time; a thread draws the following lines meanwhile."""
    tables = _draw_tables(rows, seed)
    sizes = [min(_CHUNK, rows - start) for start in range(0, rows, _CHUNK)]
    with ThreadPoolExecutor(1) as pool:
        upcoming = None
        for i, size in enumerate(sizes):
            previous, upcoming = upcoming, pool.submit(_draw_lines, tables, size, (seed, 1, i))
            if previous is not None:
                yield previous.result()
        if upcoming is not None:
            yield upcoming.result()


def _draw_lines(tables: _Tables, rows: int, seed: tuple[int, ...]) -> memoryview:
    rng = np.random.Generator(np.random.SFC64(seed))
    user = _skewed(rng, rows, len(tables.user), head=300)
    item = _skewed(rng, rows, len(tables.item), head=100)
    finish = rng.random(rows, np.float32) < tables.user_finish[user] * tables.item_finish[item]
    like_rate = tables.user_like[user] * tables.item_like[item] * (np.float32(0.7) + finish)
    like = rng.random(rows, np.float32) < like_rate
    channel = _CHANNELS[rng.integers(0, 256, rows, np.uint8)]
    # Users change between two devices.
    device = 2 * user + (rng.integers(0, 256, rows, np.uint8) < 24)
    parts = {
        "user": (tables.user, user),
        "item": (tables.item, item),
        "feedback": (tables.feedback, 4 * channel + 2 * finish + like),
        "music": (tables.music, item),
        "device": (tables.device, device),
        "publication": (tables.publication, item),
    }
    lines = np.empty(rows, [(name, table.dtype) for name, (table, _) in parts.items()])
    for name, (table, index) in parts.items():
        # "clip" spares a copy that the default makes in order to leave the output whole after an error.
        lines[name] = table.take(index, mode="clip")
    text = lines.view(np.uint8)
    return text[text != _PAD].data


def _draw_tables(rows: int, seed: int) -> _Tables:
    rng = np.random.Generator(np.random.SFC64((seed, 0)))
    users = int(np.clip(rows // _ROWS_PER_USER, 20, _MOST_USERS))
    items = int(np.clip(rows // _ROWS_PER_ITEM, 200, _MOST_ITEMS))
    duration = np.clip(rng.lognormal(2.4, 0.5, items), 2, 600).astype(np.int16)
    author = _skewed(rng, items, max(items // 5, 10), head=100)
    channel, finish, like = np.unravel_index(np.arange(20), (5, 2, 2))
    return _Tables(
        user=_text("\t", np.arange(users), _with_unknown(rng, _skewed(rng, users, 396, head=10))),
        item=_text("\t", np.arange(items), author, _with_unknown(rng, _skewed(rng, items, 461, head=10))),
        feedback=_text("\t", channel, finish, like),
        music=_text("\t", _with_unknown(rng, _skewed(rng, items, max(items // 40, 10), head=20))),
        device=_text("\t", _skewed(rng, 2 * users, 2 * users, head=50)),
        publication=_text("\n", FIRST_TIME + rng.integers(0, DAYS * 86_400, items), duration),
        user_finish=_rates(rng, users, _FINISH),
        user_like=_rates(rng, users, _LIKE),
        # Short videos are watched to the end more often.
        item_finish=_rates(rng, items, 1.0) * np.float32(1.14) / np.sqrt(duration / np.float32(8)),
        item_like=_rates(rng, items, 1.0),
    )


def _text(end: str, *columns: np.ndarray) -> np.ndarray:
    """The cells of some columns with tabs between and `end` after them, filled up to the longest."""
    cells = [pa.array(column).cast(pa.string()) for column in columns]
    lines = pc.binary_join_element_wise(*cells[:-1], pc.binary_join_element_wise(cells[-1], end, ""), "\t")
    width = pc.max(pc.binary_length(lines)).as_py()
    padded = pc.utf8_rpad(lines, width, padding=chr(_PAD))
    return np.frombuffer(padded.buffers()[2], f"V{width}", len(lines))


def _skewed(rng: np.random.Generator, size: int, values: int, head: int) -> np.ndarray:
    """Draws from 0 to `values` - 1 with frequencies in proportion to 1 / (value + `head`)."""
    # The inverse of the distribution: one power, whatever the number of values.
    drawn = head * np.expm1(rng.random(size) * np.log1p(values / head))
    return np.minimum(drawn.astype(np.intp), values - 1)


def _with_unknown(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    values[rng.random(len(values), np.float32) < _UNKNOWN] = -1
    return values


def _rates(rng: np.random.Generator, size: int, mean: float) -> np.ndarray:
    """Positive factors of about this mean, a few times larger for some than for others."""
    return (mean * rng.lognormal(-0.125, 0.5, size)).astype(np.float32)
