"""The process of a side: opens it, and answers each line of JSON on standard input with one on standard output.

{"do": "time", "rows": 64, "raw": false, "seconds": 2.0}   -> {"ms": [0.61, 0.58, ...]}
{"do": "predict", "file": "a.npy"}                         -> {"rows": 30290}, and the probabilities in the file
{"do": "memory"}                                           -> {"mb": 512.3}
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from scorers.rows import log_rows
from scorers.sides import Side, open_side

_WARM = 0.2
"""Share of the seconds that calls are made for before any is timed."""
_LEAST = 5
"""Calls that are timed at least."""
_AT_ONCE = 4096


def main(name: str, run: str, bundles: str, log: str, split: str) -> None:
    """Answers until standard input ends; the first line says that a row has been scored."""
    side = open_side(name, run=run, bundles=Path(bundles))
    with torch.inference_mode():
        side.score(log_rows(log, split, 1))()
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            print(json.dumps(_answer(side, log, split, json.loads(line))), flush=True)


def _answer(side: Side, log: str, split: str, request: dict[str, Any]) -> dict[str, Any]:
    if request["do"] == "memory":
        return {"mb": _memory_mb()}
    if request["do"] == "predict":
        table = pq.read_table(Path(log) / split)
        parts = [side.score(batch)() for batch in table.combine_chunks().to_batches(max_chunksize=_AT_ONCE)]
        np.save(request["file"], torch.cat(parts).float().numpy())
        return {"rows": len(table)}
    rows = request["rows"]
    if not request["raw"]:
        return {"ms": _times(side.score(log_rows(log, split, rows)), request["seconds"])}
    return {"ms": [] if side.score_raw is None else _times(side.score_raw(rows), request["seconds"])}


def _times(call: Callable[[], Any], seconds: float) -> list[float]:
    """The ms of each call for so many seconds, after some that warm up."""
    _timed(call, seconds * _WARM, least=2)
    return _timed(call, seconds, least=_LEAST)


def _timed(call: Callable[[], Any], seconds: float, *, least: int) -> list[float]:
    times, end = list[float](), time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1000)
    return times


def _memory_mb() -> float:
    """Memory of this process, with the pages that it has mapped and read."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main(*sys.argv[1:])
