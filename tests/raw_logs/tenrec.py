"""Tenrec, the videos of two apps (tenrec0.github.io): `QK-video.csv` and `QB-video.csv`.

A header, commas, `\\N` for an unknown category. The rows of a user stand together, in the order in which the user saw
them; there is no time. Some rows are there twice, and a user may see a video twice with different feedback.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raw_logs.draws import effect, generator, label, skewed, some
from raw_logs.lines import text, write_lines

COLUMNS = (
    *("user_id", "item_id", "click", "follow", "like", "share", "video_category", "watching_times", "gender", "age"),
)
REPEATS = 0.007


def write_tenrec(folder: Path, rows: int, seed: int = 0, app: Literal["QK", "QB"] = "QK") -> Path:
    """Writes `QK-video.csv` or `QB-video.csv` with `rows` rows and returns its path."""
    rng = generator(seed, ord(app[1]))
    users, items = max(rows // (98 if app == "QK" else 71), 10), max(rows // (130 if app == "QK" else 19), 20)
    user = np.sort(skewed(rng, rows, users, head=users))
    item = skewed(rng, rows, items, head=20)
    gender, age = skewed(rng, users, 3, head=1), rng.integers(0, 8, users)
    liking = effect(rng, users, user), effect(rng, items, item), effect(rng, 8, age[user], 0.3)
    click = label(rng, 0.24 if app == "QK" else 0.7, *liking)
    category = skewed(rng, items, 2, head=1)[item]
    columns = {
        "user_id": user + 1,
        "item_id": item + 1,
        "click": click,
        "follow": label(rng, 0.002, *liking, within=click > 0),
        "like": label(rng, 0.02, *liking, within=click > 0),
        "share": label(rng, 0.004, *liking, within=click > 0),
        "video_category": pc.if_else(pa.array(item % 77 == 5), r"\N", text(category)),
        "watching_times": click * (1 + skewed(rng, rows, 30, head=1)),
        "gender": gender[user],
        "age": age[user],
    }
    # A repeated row stands after the first one.
    from_row = np.arange(rows)
    twice = np.flatnonzero(some(rng, rows, REPEATS) & (from_row > 0))
    from_row[twice] -= 1
    path = folder / f"{app}-video.csv"
    write_lines(path, {name: pa.array(columns[name]).take(pa.array(from_row)) for name in COLUMNS})
    return path
