"""Which rank hangs or has stopped, judged by what all ranks report.

Ranks wait for each other in collectives, so when one hangs all of them stand still. The one at fault has begun fewer
activities than those that wait for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

HANGS_AFTER = 1.2
"""Timeouts after which a rank counts as hanging, or the store as silent. Above 1, so that a process that has stopped,
and therefore stands still as well, is named first."""
ALL_RANKS_END = (
    "all ranks end, and the same command resumes from the last checkpoint (--train.timeout sets how long ranks wait)."
)


def report_interval(timeout: float) -> float:
    """Seconds between two reports of a rank."""
    return min(1.0, timeout / 10)


@dataclass(frozen=True)
class Beat:
    """The last report of a rank."""

    count: int
    """Reports so far; rises as long as the process lives."""
    activities: int
    """Activities begun so far; rises as long as the main thread makes progress."""
    activity: str
    """The latest one, such as `making a training step`."""
    location: str = ""
    """The main thread's place in the code, such as `models/stem.py:5`."""
    is_waiting: bool = False
    """Whether the main thread waits for other ranks at that place."""


class Watcher:
    """Names the rank that all others wait for.

    Args:
        timeout: seconds without a report after which a rank counts as stopped; it counts as hanging after `HANGS_AFTER`
            times as long without a new activity.
        sees_all_ranks: whether it gets the reports of all ranks; without them it cannot tell a rank that hangs from one
            that waits, and names only those that have stopped.

    Example::

        watcher = Watcher(timeout=60)
        watcher.verdict({0: Beat(1, 8, "making a training step"), 1: Beat(1, 7, "reading a batch")}, now=0)  # None
        watcher.verdict({0: Beat(90, 8, "making a training step"), 1: Beat(90, 7, "reading a batch")}, now=90)
        # rank 1 hangs: for 90 s it has been reading a batch; all ranks end, and the same command resumes ...
    """

    def __init__(self, timeout: float, *, sees_all_ranks: bool = True) -> None:
        self._timeout, self._sees_all_ranks = timeout, sees_all_ranks
        self._last_report: dict[int, tuple[int, float]] = {}
        self._last_activity: dict[int, tuple[int, float]] = {}

    def verdict(self, beats: Mapping[int, Beat], *, now: float) -> str | None:
        """A sentence that names the rank that has stopped or hangs; None if all make progress.

        Args:
            beats: the last report by rank.
            now: the time in seconds, from any start.
        """
        for rank, beat in beats.items():
            if self._last_report.get(rank, (None,))[0] != beat.count:
                self._last_report[rank] = beat.count, now
            if self._last_activity.get(rank, (None,))[0] != beat.activities:
                self._last_activity[rank] = beat.activities, now
        silent = [rank for rank in beats if now - self._last_report[rank][1] > self._timeout]
        if silent:
            return _sentence("has stopped", silent, beats, seconds=now - self._last_report[silent[0]][1])
        stuck = [rank for rank in beats if now - self._last_activity[rank][1] > HANGS_AFTER * self._timeout]
        # A rank that waits in a collective has begun more activities than the one it waits for, which may only be slow.
        fewest = min(beat.activities for beat in beats.values())
        behind = [rank for rank in stuck if beats[rank].activities == fewest]
        if not behind or not self._sees_all_ranks:
            return None
        hanging = [rank for rank in behind if not beats[rank].is_waiting] or behind
        return _sentence("hangs", hanging, beats, seconds=now - self._last_activity[hanging[0]][1])


def _sentence(fault: str, ranks: list[int], beats: Mapping[int, Beat], *, seconds: float) -> str:
    rank, beat = ranks[0], beats[ranks[0]]
    others = f" (or one of {len(ranks) - 1} others)" if len(ranks) > 1 else ""
    location = f" at {beat.location}" if beat.location else ""
    return f"rank {rank}{others} {fault}: for {seconds:.0f} s it has been {beat.activity}{location}; {ALL_RANKS_END}"
