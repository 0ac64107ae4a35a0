"""What the user sees of the work: a bar for each stage on a terminal, and a line when it is done."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from tqdm import tqdm

_EVERY = 0.2
"""Seconds between two looks at the progress."""


class Stages:
    """Shows the stages of some work.

    Args:
        progress: the percentage of the query that runs; None or a negative number if it is not known.

    Example::

        with stages.stage("rows") as done:
            done(1_000_000)
        # rows          1,000,000 rows    1.2 s    821k rows/s
    """

    def __init__(self, progress: Callable[[], float | None]) -> None:
        self._progress = progress
        self._rows = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int], None]]:
        """A stage; what it yields takes the number of its rows, for the line."""
        start, rows, ended = time.monotonic(), list[int](), Event()
        # How many rows there are is known behind the first stage.
        total, unit = (self._rows, " rows") if self._rows else (100, "%")
        hidden = not sys.stderr.isatty()
        with tqdm(desc=name, total=total, unit=unit, unit_scale=bool(self._rows), disable=hidden, leave=False) as bar:
            thread = Thread(target=self._follow, args=(bar, total, ended), daemon=True)
            thread.start()
            try:
                yield rows.append
            finally:
                ended.set()
                thread.join()
        seconds = time.monotonic() - start
        self._rows = rows[-1] if rows else self._rows
        speed = f"{rows[-1]:13,} rows {seconds:8.1f} s {rows[-1] / seconds / 1e3:8,.0f}k rows/s" if rows else ""
        print(f"{name:<14}{speed or f'{seconds:27.1f} s'}", flush=True)

    def _follow(self, bar: tqdm, total: int, ended: Event) -> None:
        before = 0.0
        while not ended.wait(_EVERY):
            percent = self._progress()
            if percent is None or percent < 0:
                continue
            # A stage may have several queries, each of which begins anew.
            begins, before = percent < before, percent
            if begins:
                bar.reset()
            else:
                bar.n = round(percent / 100 * total)
                bar.refresh()
