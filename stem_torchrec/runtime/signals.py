"""SIGTERM and Ctrl-C: the first ends a run after a checkpoint, a second Ctrl-C ends it at once."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType

from stem_torchrec.runtime.launch_environment import is_first_on_host


@contextmanager
def ending_on_signals() -> Iterator[Event]:
    """Returns an event that SIGTERM or SIGINT sets until the end of the block; only the main thread may enter it."""
    ending = Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and ending.is_set():
            os._exit(128 + number)
        if not ending.is_set() and is_first_on_host(os.environ):
            name = signal.Signals(number).name
            again = "; again ends it at once" if number == signal.SIGINT else ""
            # Not by print, which the signal may have interrupted.
            os.write(sys.stderr.fileno(), f"{name}: writing a checkpoint, then ending{again}\n".encode())
        ending.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
