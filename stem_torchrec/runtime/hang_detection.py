"""Ends all ranks, with a sentence that names the culprit, when one of them hangs or has stopped.

A thread of each rank reports to a store what its main thread is doing. Rank 0 reads the reports of all ranks and writes
the verdict; the others read rank 0's reports and the verdict.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread, main_thread

import torch.distributed as dist

from stem_torchrec.runtime.error_kinds import ErrorKind
from stem_torchrec.runtime.errors import LostRankError, reason_of
from stem_torchrec.runtime.exit_status import ExitStatus
from stem_torchrec.runtime.hang_verdict import ALL_RANKS_END, HANGS_AFTER, Beat, Watcher, report_interval
from stem_torchrec.runtime.internals.pytorch import clone_default_store
from stem_torchrec.runtime.process import Process

_GRACE = 30.0
"""Seconds that collectives wait beyond the verdict, so that its sentence is printed before their errors."""
_INTERVALS_TO_VERDICT = 4
"""Report intervals until a rank has reported, rank 0 has read the report and judged, and the others have read the
verdict."""
_WAITING = ("torch/distributed/", "torchrec/distributed/")
"""Folders of code in which a rank waits for others."""
_PREFIX, _VERDICT = "heartbeat", "heartbeat/verdict"


@dataclass
class _Activity:
    """The latest activity of the main thread."""

    count: int = 0
    """Activities begun so far."""
    name: str = "starting"


_CURRENT = _Activity()


def set_activity(name: str) -> None:
    """Tells the heartbeat what the main thread begins, such as `reading a batch of the training split`."""
    _CURRENT.count, _CURRENT.name = _CURRENT.count + 1, name


def collective_timeout(timeout: float) -> float:
    """Seconds that collectives wait, long enough that a hanging rank is named before they fail.

    A rank that was already late by more than the grace before it hung is not named: then the others only report that
    they have lost it.

    Args:
        timeout: the heartbeat's, in seconds.

    Example::

        collective_timeout(60)  # 106.0
    """
    return HANGS_AFTER * timeout + _INTERVALS_TO_VERDICT * report_interval(timeout) + _GRACE


@contextmanager
def heartbeat(process: Process, *, timeout: float) -> Iterator[None]:
    """Watches the ranks until the end of the block; ends this process with status 3 if one hangs or has stopped.

    Args:
        process: this rank; a single one is watched as well, as its reader processes may hang.
        timeout: seconds without a sign of life after which a rank counts as stopped.

    Raises LostRankError if a collective fails because another rank has ended.
    """
    threads = _Heartbeat(process, timeout)
    threads.start()
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise LostRankError(
            f"rank {process.rank} has lost another rank while it was {_CURRENT.name} ({reason_of(error)[:200]}); the "
            "cause is in the output of that rank or of its launcher, and the same command resumes the run."
        ) from error
    finally:
        threads.stop()


class _Heartbeat:
    """The two threads of a rank: one reports and reads, the other watches that the store answers."""

    def __init__(self, process: Process, timeout: float) -> None:
        self._process, self._timeout = process, timeout
        self._interval = report_interval(timeout)
        self._store = clone_default_store()
        self._done, self._reports = Event(), 0
        self._threads = [
            Thread(target=work, name="heartbeat", daemon=True) for work in (self._report, self._watch_the_store)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            # Bounded: a thread blocks for ever if the store's server has stopped.
            thread.join(2 * self._interval)

    def _report(self) -> None:
        process = self._process
        store = self._store
        watched = range(process.world_size) if process.is_first else [0]
        watcher = Watcher(self._timeout, sees_all_ranks=process.is_first)
        now, last = 0.0, time.monotonic()
        while True:
            self._reports += 1
            # Time stands still while all ranks are stopped for a while, as with a suspended machine.
            now, last = now + min(time.monotonic() - last, 2 * self._interval), time.monotonic()
            try:
                store.set(f"{_PREFIX}/{process.rank}", self._beat())
                published = store.get(_VERDICT).decode() if store.check([_VERDICT]) else None
                beats = {rank: _read_beat(store, rank) for rank in watched}
            except dist.DistError:
                self._done.set()
                return  # The process that serves the store has ended, and the launcher ends the others.
            verdict = None if published else watcher.verdict(beats, now=now)
            if verdict:
                store.set(_VERDICT, verdict)
                _print_error(verdict)
                time.sleep(2 * self._interval)  # The others read the verdict before the store may end.
            if verdict or published:
                os._exit(ExitStatus.LOST_RANK)
            if self._done.wait(self._interval):
                return

    def _beat(self) -> str:
        return json.dumps([self._reports, _CURRENT.count, _CURRENT.name, *_location()])

    def _watch_the_store(self) -> None:
        """Ends this process if the store does not answer; the store's own timeouts do not cover a stopped server."""
        reports, silent = 0, 0.0
        # Counted in intervals, not by the clock: this process may have been stopped for a while itself.
        while not self._done.wait(self._interval):
            silent = silent + self._interval if self._reports == reports else 0.0
            reports = self._reports
            if silent > HANGS_AFTER * self._timeout:
                _print_error(
                    "the store of the ranks, which rank 0 or the launcher serves, has not answered for "
                    f"{silent:.0f} s; {ALL_RANKS_END}"
                )
                os._exit(ExitStatus.LOST_RANK)


def _print_error(sentence: str) -> None:
    sys.stderr.write(f"error: {sentence} [{ErrorKind.RANK}]\n")
    sys.stderr.flush()


def _location() -> tuple[str, bool]:
    """The main thread's place in the code, and whether it waits for other ranks at that place."""
    frame = sys._current_frames().get(main_thread().ident or 0)
    if frame is None:
        return "", False
    path = frame.f_code.co_filename
    return f"{'/'.join(Path(path).parts[-2:])}:{frame.f_lineno}", any(folder in path for folder in _WAITING)


def _read_beat(store: dist.Store, rank: int) -> Beat:
    key = f"{_PREFIX}/{rank}"
    return Beat(*json.loads(store.get(key))) if store.check([key]) else Beat(0, 0, "starting")
