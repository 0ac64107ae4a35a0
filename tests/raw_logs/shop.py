"""A shop: `pairs.tsv`, pairs of a user and an item with the deepest of nothing 0, viewed 1, saved 2 and bought 3.

Tab-separated without a header and without a time; a pair occurs once.
"""

from pathlib import Path

import numpy as np

from raw_logs.draws import effect, generator, label, skewed
from raw_logs.lines import write_lines

FILE = "pairs.tsv"
COLUMNS = ("user_id", "item_id", "depth")


def write_shop(folder: Path, rows: int, seed: int = 0) -> Path:
    """Writes `pairs.tsv` with at most `rows` pairs, and returns its path."""
    rng = generator(seed)
    users, items = max(rows // 22, 10), max(rows // 30, 10)
    drawn = skewed(rng, 2 * rows, users, head=100) * items + skewed(rng, 2 * rows, items, head=100)
    pair = rng.permutation(np.unique(drawn))[:rows]
    user, item = pair // items, pair % items
    liking = effect(rng, users, user), effect(rng, items, item)
    view = label(rng, 0.5, *liking)
    save = label(rng, 0.265, *liking, within=view > 0)
    buy = label(rng, 0.405, *liking, within=save > 0)
    path = folder / FILE
    write_lines(path, dict(zip(COLUMNS, (user, item, view + save + buy), strict=True)), separator="\t", header=False)
    return path
