"""SIGTERM and Ctrl-C: the first asks a run to end well, a second Ctrl-C ends it at once."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType


@contextmanager
def ending_on_signals() -> Iterator[Event]:
    """An event that SIGTERM or SIGINT sets until the end of the block. The main thread enters it."""
    asked = Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and asked.is_set():
            os._exit(128 + number)
        if not asked.is_set() and os.environ.get("LOCAL_RANK", "0") == "0":
            name = signal.Signals(number).name
            again = "; again ends it at once" if number == signal.SIGINT else ""
            # Not by print, which a signal may have interrupted.
            os.write(sys.stderr.fileno(), f"{name}: writing a checkpoint, then ending{again}\n".encode())
        asked.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
