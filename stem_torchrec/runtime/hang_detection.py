"""A rank that hangs or has stopped is named, and all ranks end.

Ranks wait for each other in collectives, so when one hangs all do, and none of them can say whose fault it is. Here a
thread of each rank tells a store what its main thread is doing. Rank 0 reads what all say, the others read rank 0.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread, main_thread

import torch.distributed as dist

from stem_torchrec.runtime.errors import HANG_STATUS, LostRankError, reason_of
from stem_torchrec.runtime.process import Process, store_of_launcher

_GRACE = 30.0
"""Seconds that collectives wait beyond the verdict about a rank that hangs, so that the sentence comes before their
errors do."""
_HANGS_AFTER = 1.2
"""Times the timeout after which a rank counts as hanging, or the store as silent: later than a process that has stopped
is found, which stands still as well."""
_PAUSES_TO_VERDICT = 4
"""Pauses until a rank has said what it does, rank 0 has heard it, has judged it, and the others have read the
verdict."""
_ALL_END = (
    "all ranks end, and the same command goes on from the last checkpoint (--train.timeout says how long to wait)."
)
_WAITING = ("torch/distributed/", "torchrec/distributed/")
"""Where in the code a rank waits for others."""
_PREFIX, _VERDICT = "heartbeat", "heartbeat/verdict"


@dataclass
class Activity:
    """The latest thing that the main thread has begun."""

    number: int = 0
    """How many it has begun."""
    what: str = "starting"


CURRENT = Activity()


def set_activity(what: str) -> None:
    """The main thread begins something, such as `reading a batch after step 120`."""
    CURRENT.number, CURRENT.what = CURRENT.number + 1, what


@dataclass(frozen=True)
class Beat:
    """What a rank said last."""

    beat: int
    """Rises as long as the process lives."""
    number: int
    """Rises as long as its main thread goes on."""
    what: str
    where: str = ""
    """The place in the code."""
    waits: bool = False
    """Whether that place waits for other ranks."""


def collective_timeout(timeout: float) -> float:
    """Seconds that collectives wait, so that a rank for which they wait in vain is named before they fail.

    One that was late by more than the grace before it hangs is not: then the others only say that they have lost it.

    Args:
        timeout: the heartbeat's.
    """
    return _HANGS_AFTER * timeout + _PAUSES_TO_VERDICT * _pause(timeout) + _GRACE


def _pause(timeout: float) -> float:
    """Seconds between two things that a rank says."""
    return min(1.0, timeout / 10)


class Watcher:
    """Finds the rank that everybody waits for in what ranks say.

    Args:
        timeout: seconds without a sign of life after which a rank counts as stopped; it counts as hanging a little
            later, see `collective_timeout`.
        whole: whether it hears all ranks, without which it cannot tell who hangs from who waits.

    Example::

        watcher = Watcher(timeout=60)
        watcher.verdict({0: Beat(7, 120, "step 60"), 1: Beat(7, 119, "reading a batch")}, now=time.monotonic())
    """

    def __init__(self, timeout: float, *, whole: bool = True) -> None:
        self._timeout, self._whole = timeout, whole
        self._beats: dict[int, tuple[int, float]] = {}
        self._numbers: dict[int, tuple[int, float]] = {}

    def verdict(self, said: Mapping[int, Beat], *, now: float) -> str | None:
        """A sentence that names who has stopped or hangs; None while all is well."""
        for rank, beat in said.items():
            if self._beats.get(rank, (None,))[0] != beat.beat:
                self._beats[rank] = beat.beat, now
            if self._numbers.get(rank, (None,))[0] != beat.number:
                self._numbers[rank] = beat.number, now
        silent = [rank for rank in said if now - self._beats[rank][1] > self._timeout]
        if silent:
            return self._sentence("has not been heard of", silent, said, self._beats, now)
        stuck = [rank for rank in said if now - self._numbers[rank][1] > _HANGS_AFTER * self._timeout]
        # Who waits in a collective has begun more than whom it waits for, who may take long and go on.
        least = min(beat.number for beat in said.values())
        behind = [rank for rank in stuck if said[rank].number == least]
        if not behind or not self._whole:
            return None
        return self._sentence(
            "hangs", [rank for rank in behind if not said[rank].waits] or behind, said, self._numbers, now
        )

    def _sentence(
        self, does: str, ranks: list[int], said: Mapping[int, Beat], since: Mapping[int, tuple[int, float]], now: float
    ) -> str:
        rank = ranks[0]
        others = f" (or one of {len(ranks) - 1} others)" if len(ranks) > 1 else ""
        where = f" at {said[rank].where}" if said[rank].where else ""
        return (
            f"rank {rank}{others} {does}: for {now - since[rank][1]:.0f} s it has been {said[rank].what}{where}; "
            f"{_ALL_END}"
        )


@contextmanager
def heartbeat(process: Process, *, timeout: float) -> Iterator[None]:
    """Watches over the ranks until the end of the block; ends this process, with a sentence, if one hangs.

    Raises LostRankError where another rank is gone.
    """
    if process.world_size == 1:
        yield
        return
    pulse = _Pulse(process, timeout)
    pulse.start()
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise LostRankError(
            f"rank {process.rank} has lost another rank while it was {CURRENT.what} "
            f"({reason_of(error)[:200]}); what that one said, or its launcher says of it, is the cause, and the same "
            "command goes on."
        ) from error
    finally:
        pulse.stop()


class _Pulse:
    """The threads of a rank that speak and listen."""

    def __init__(self, process: Process, timeout: float) -> None:
        self._process, self._timeout = process, timeout
        self._pause = _pause(timeout)
        self._done, self._beats = Event(), 0
        self._threads = [
            Thread(target=work, name="heartbeat", daemon=True) for work in (self._beat, self._watch_the_store)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            # Without end where the store's server has stopped.
            thread.join(2 * self._pause)

    def _beat(self) -> None:
        process = self._process
        # A connection of its own: the process group's store serves the main thread.
        store = store_of_launcher(process.start, timeout=self._timeout)
        watched = range(process.world_size) if process.is_first else [0]
        watcher = Watcher(self._timeout, whole=process.is_first)
        now, last = 0.0, time.monotonic()
        while True:
            self._beats += 1
            # All ranks may have been stopped for a while, and go on.
            now, last = now + min(time.monotonic() - last, 2 * self._pause), time.monotonic()
            said = json.dumps([self._beats, CURRENT.number, CURRENT.what, *_place()])
            try:
                store.set(f"{_PREFIX}/{process.rank}", said)
                sentence = store.get(_VERDICT).decode() if store.check([_VERDICT]) else None
                heard = {rank: _hear(store, rank) for rank in watched}
            except dist.DistError:
                self._done.set()
                return  # Who serves the store has ended, and the launcher ends the rest.
            mine = None if sentence else watcher.verdict(heard, now=now)
            if mine:
                store.set(_VERDICT, mine)
                _say(mine)
                time.sleep(2 * self._pause)  # The others read the verdict before the store may end.
            if mine or sentence:
                os._exit(HANG_STATUS)
            if self._done.wait(self._pause):
                return

    def _watch_the_store(self) -> None:
        """Ends this process if the store does not answer, for which its own timeouts do not hold."""
        heard, silent = 0, 0.0
        # Counted, not measured: this process may have been stopped for a while itself.
        while not self._done.wait(self._pause):
            silent = silent + self._pause if self._beats == heard else 0.0
            heard = self._beats
            if silent > _HANGS_AFTER * self._timeout:
                _say(
                    "the store of the ranks, which rank 0 or the launcher serves, has not answered for "
                    f"{silent:.0f} s; {_ALL_END}"
                )
                os._exit(HANG_STATUS)


def _say(sentence: str) -> None:
    sys.stderr.write(f"error: {sentence}\n")
    sys.stderr.flush()


def _place() -> tuple[str, bool]:
    """Where the main thread is, and whether it waits for other ranks there."""
    frame = sys._current_frames().get(main_thread().ident or 0)
    if frame is None:
        return "", False
    path = frame.f_code.co_filename
    return f"{'/'.join(Path(path).parts[-2:])}:{frame.f_lineno}", any(part in path for part in _WAITING)


def _hear(store: dist.Store, rank: int) -> Beat:
    key = f"{_PREFIX}/{rank}"
    return Beat(*json.loads(store.get(key))) if store.check([key]) else Beat(0, 0, "starting")
