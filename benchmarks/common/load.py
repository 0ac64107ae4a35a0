"""How busy other processes keep this machine while something is measured."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
BUSY_SHARE = 0.1
"""Share of the cores that others may keep busy before a report warns of it."""


@dataclass(frozen=True)
class CpuTime:
    """CPU seconds at some moment; the difference of two moments tells who was busy between them."""

    at: float
    """time.monotonic()."""
    busy: float
    """CPU seconds of all processes on the cores of this one, steal by other virtual machines included."""
    own: float
    """CPU seconds of this process and of its children that have ended."""

    @classmethod
    def now(cls) -> "CpuTime":
        """The times now."""
        own = os.times()
        return cls(time.monotonic(), _busy_seconds(), own.user + own.system + own.children_user + own.children_system)


def busy_with_others(seconds: float, busy: float, own: float) -> float:
    """Cores that other processes kept busy on average, from CPU seconds; clocks count in hundredths of a second."""
    return max(0.0, (busy - own) / seconds) if seconds > 0 else 0.0


def is_loaded(others: float, cores: int) -> bool:
    """Whether so many cores busy with others make measured times too long to be trusted."""
    return others > BUSY_SHARE * cores


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _busy_seconds() -> float:
    """CPU seconds since boot on the cores that this process may use: user, nice, system, irq, softirq and steal."""
    usable, ticks = os.sched_getaffinity(0), 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in usable:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, values[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / _TICKS
