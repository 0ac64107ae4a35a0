"""Times steps by the clock of the device that makes them."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch


def timed(step: Callable[[], Any], steps: int, device: torch.device) -> tuple[list[Any], list[float]]:
    """The results of `steps` calls and the ms of each; a GPU's own clock times it, so that no step waits for it."""
    results = []
    if device.type == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        marks[0].record()
        for mark in marks[1:]:
            results.append(step())
            mark.record()
        torch.cuda.synchronize()
        return results, [start.elapsed_time(stop) for start, stop in pairwise(marks)]
    times = [time.perf_counter()]
    for _ in range(steps):
        results.append(step())
        times.append(time.perf_counter())
    return results, [(stop - start) * 1000 for start, stop in pairwise(times)]
