"""What rank 0 says: a progress bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Mapping
from contextlib import suppress

import torch.distributed as dist
from tqdm import tqdm


def log_rank0(text: str) -> None:
    """Prints a line on rank 0, above the progress bar if there is one; no run ends because nobody can hear it."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        with suppress(OSError):
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()


def progress_bar(total: int, unit: str) -> tqdm:
    """A bar on rank 0's terminal; silent elsewhere."""
    silent = dist.get_rank() != 0 or not sys.stderr.isatty()
    return tqdm(total=total, unit=unit, disable=silent, dynamic_ncols=True)


class TimeLeft:
    """How long the rest of several pieces of work takes, from those that are done.

    Args:
        total: pieces.
    """

    def __init__(self, total: int) -> None:
        self._total, self._begin = total, time.monotonic()

    def after(self, done: int) -> str:
        """`, 12:30 left` when `done` pieces are; nothing before the first."""
        if not done:
            return ""
        each = (time.monotonic() - self._begin) / done
        return f", {tqdm.format_interval(each * (self._total - done))} left"


def format_values(values: Mapping[str, float | int | None]) -> str:
    """`auc/finish 0.7421  auc/like 0.8014`, with `-` for what is undefined."""
    return "  ".join(f"{name} {'-' if value is None else format(value, '.4f')}" for name, value in values.items())
