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
from datetime import timedelta
from threading import Event, Thread

import torch.distributed as dist

from stem_torchrec import activity
from stem_torchrec.process import Process, store_of_launcher

GRACE = 30.0
"""Seconds that collectives wait beyond the timeout, so that the sentence comes before their errors do."""
HANG_STATUS = 3
"""Exit status of ranks that a hanging one has ended."""
_PREFIX, _VERDICT = "heartbeat", "heartbeat/verdict"


@dataclass(frozen=True)
class Beat:
    """What a rank said last."""

    beat: int
    """Rises as long as the process lives."""
    number: int
    """Rises as long as its main thread goes on."""
    what: str


class Watcher:
    """Finds the rank that everybody waits for in what ranks say.

    Args:
        timeout: seconds without a change after which a rank counts as stopped, or as hanging.
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
        # A little later, since a process that has stopped also stands still.
        stuck = [rank for rank in said if now - self._numbers[rank][1] > 1.2 * self._timeout]
        if not stuck or not self._whole:
            return None
        # Who waits in a collective has begun more than whom it waits for.
        least = min(said[rank].number for rank in stuck)
        return self._sentence("hangs", [rank for rank in stuck if said[rank].number == least], said, self._numbers, now)

    def _sentence(
        self, does: str, ranks: list[int], said: Mapping[int, Beat], since: Mapping[int, tuple[int, float]], now: float
    ) -> str:
        rank = ranks[0]
        others = f" (and {len(ranks) - 1} others)" if len(ranks) > 1 else ""
        return (
            f"rank {rank}{others} {does}: for {now - since[rank][1]:.0f} s it has been {said[rank].what}; all ranks "
            "end, and the same command goes on from the last checkpoint (--train.timeout says how long to wait)."
        )


@contextmanager
def heartbeat(process: Process, *, timeout: float) -> Iterator[None]:
    """Watches over the ranks until the end of the block; ends this process, with a sentence, if one hangs."""
    if process.world_size == 1:
        yield
        return
    done = Event()
    thread = Thread(target=_beat, args=(process, timeout, done), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _beat(process: Process, timeout: float, done: Event) -> None:
    # A connection of its own: the process group's store serves the main thread.
    store = store_of_launcher(timeout=timeout) or dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=timeout)
    )
    watched = range(process.world_size) if process.is_first else [0]
    watcher, beat = Watcher(timeout, whole=process.is_first), 0
    while True:
        beat += 1
        said = json.dumps([beat, activity.current.number, activity.current.what])
        try:
            store.set(f"{_PREFIX}/{process.rank}", said)
            sentence = store.get(_VERDICT).decode() if store.check([_VERDICT]) else None
            heard = {rank: _hear(store, rank) for rank in watched}
        except dist.DistError:
            return  # Who serves the store has ended, and the launcher ends the rest.
        mine = None if sentence else watcher.verdict(heard, now=time.monotonic())
        if mine:
            store.set(_VERDICT, mine)
        if mine or sentence:
            if mine:
                sys.stderr.write(f"error: {mine}\n")
                sys.stderr.flush()
                time.sleep(2 * min(1.0, timeout / 10))  # The others read the verdict before the store may end.
            os._exit(HANG_STATUS)
        if done.wait(min(1.0, timeout / 10)):
            return


def _hear(store: dist.Store, rank: int) -> Beat:
    key = f"{_PREFIX}/{rank}"
    return Beat(*json.loads(store.get(key))) if store.check([key]) else Beat(0, 0, "starting")
