"""A process of benchmarks/large_tables.py: opens a bundle, scores random ids, and tells what memory that takes.

Its arguments are the bundle and a number of rows. Its first line is {"load_s": ..., "rows_s": ..., "sum": ...}, and
each line on standard input gets {"rss_mb": ..., "pss_mb": ..., "private_mb": ..., "process_mb": ...}.
"""

import json
import sys
import time
from pathlib import Path

from stem_torchrec.serving.bundle import load_bundle
from stem_torchrec.serving.manifest import TABLES_FILE

from studies.sparse_tables import random_ids


def main(folder: str, rows: int) -> None:
    """Answers until standard input ends."""
    start = time.perf_counter()
    bundle = load_bundle(folder)
    ids = random_ids(bundle, rows)
    bundle.score(ids.slice(0, 1))
    first = time.perf_counter()
    scores = bundle.score(ids)
    end = time.perf_counter()
    total = sum(column.to_numpy().sum(dtype=float) for column in scores.columns)
    print(json.dumps({"load_s": first - start, "rows_s": end - first, "sum": total}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(memory_of_tables()), flush=True)


def memory_of_tables() -> dict[str, float]:
    """MB of the mapped tables that are in memory, and of the whole process, from /proc/self/smaps.

    In PSS a page that n processes have counts an n-th; private_mb are the pages that no other process has.
    """
    sums = dict.fromkeys(("Rss", "Pss", "Private_Clean", "Private_Dirty"), 0)
    process, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if " " in name:  # The head of a mapping ends with its file.
            inside = line.endswith(f"/{TABLES_FILE}")
            continue
        process += int(value.split()[0]) if name == "Rss" else 0
        if inside and name in sums:
            sums[name] += int(value.split()[0])
    parts = {"rss": sums["Rss"], "pss": sums["Pss"], "private": sums["Private_Clean"] + sums["Private_Dirty"]}
    return {f"{name}_mb": kib * 1024 / 1e6 for name, kib in (parts | {"process": process}).items()}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
