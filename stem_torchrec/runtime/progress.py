"""What rank 0 prints: a progress bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache

import torch.distributed as dist
from tqdm import tqdm


def log_rank0(text: str) -> None:
    """Prints a line on rank 0, above the progress bar if there is one; a closed standard output is ignored.

    Example::

        log_rank0("step 20  41 ms  99k samples/s  auc/like 0.8014")
    """
    if not dist.is_initialized() or dist.get_rank() == 0:
        with suppress(OSError):
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()


@cache
def note_once(text: str) -> None:
    """Prints a line on rank 0 as `log_rank0` does, but only the first time in this process."""
    log_rank0(text)


def progress_bar(total: int, unit: str) -> tqdm:
    """A progress bar that is visible on rank 0's terminal only.

    Args:
        total: units until it is full.
        unit: what it counts, such as `step`.
    """
    hidden = dist.get_rank() != 0 or not sys.stderr.isatty()
    return tqdm(total=total, unit=unit, disable=hidden, dynamic_ncols=True)


class TimeLeft:
    """Estimates how long the remaining pieces of some work take, from those that are done.

    Args:
        total: number of pieces; time counts from here.

    Example::

        left = TimeLeft(4)
        left.after(1)  # ", 12:30 left", if the first piece took 4:10 minutes
    """

    def __init__(self, total: int) -> None:
        self._total, self._begin = total, time.monotonic()

    def after(self, done: int) -> str:
        """`, 12:30 left` when `done` pieces are done; an empty string before the first."""
        if not done:
            return ""
        each = (time.monotonic() - self._begin) / done
        return f", {tqdm.format_interval(each * (self._total - done))} left"


def format_values(values: Mapping[str, float | int | None]) -> str:
    """Names and values on one line, with `-` for an undefined value.

    Example::

        format_values({"auc/finish": 0.74213, "auc/like": None})  # "auc/finish 0.7421  auc/like -"
    """
    return "  ".join(f"{name} {'-' if value is None else format(value, '.4f')}" for name, value in values.items())
