"""The same log by pandas, all in memory, as published code prepares its data: `python -m prepare.pandas_side RAW OUT`.

Reads the whole file, counts the values of train, puts ids in their place and writes the columns of the log.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from prepare.tiktok_rows import COLUMNS, FILE

FEATURES = ("uid", "item_id", "author_id", "item_city", "channel", "music_id", "device", "duration_time")
LABELS = ("finish", "like")
MIN_COUNT = 10


def prepare(raw: Path, out: Path) -> None:
    """Writes `out/train.parquet`, `valid.parquet` and `test.parquet`."""
    rows = pd.read_csv(raw / FILE, sep="\t", names=list(COLUMNS), usecols=[*FEATURES, *LABELS])
    drawn = np.random.default_rng(0).permutation(len(rows))
    valid, test = int(0.81 * len(rows)), int(0.9 * len(rows))
    parts = {
        "train": rows.iloc[drawn[:valid]],
        "valid": rows.iloc[drawn[valid:test]],
        "test": rows.iloc[drawn[test:]],
    }
    ids = {}
    for name in FEATURES:
        counts = parts["train"][name].value_counts()
        kept = counts[counts >= MIN_COUNT].index
        ids[name] = pd.Series(np.arange(1, len(kept) + 1, dtype=np.int32), index=kept)
    out.mkdir(parents=True)
    for split, part in parts.items():
        columns = {name: part[name].map(ids[name]).fillna(0).astype(np.int32) for name in FEATURES}
        columns |= {name: part[name].astype(np.int8) for name in LABELS}
        columns["group_uid"] = part["uid"]
        pd.DataFrame(columns).to_parquet(out / f"{split}.parquet", row_group_size=65_536, index=False)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
