"""Signals that end a command: a run writes a checkpoint first, anything else cleans up and stops.

SIGTERM, SIGHUP and Ctrl-C (SIGINT) do the same. One that was ignored when the process started, as SIGHUP is under nohup
and SIGINT in the background of a script, stays ignored.
"""

import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread, Timer
from types import FrameType, ModuleType
from typing import Any, TypeVar

from stem_torchrec.runtime.exit_status import killed_by
from stem_torchrec.runtime.launch_environment import is_first_on_host

ErrorT = TypeVar("ErrorT", bound=BaseException)

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""Signals that ask a process to end."""
_GRACE = 10.0
"""Seconds in which the main thread stops; one that waits for other ranks in C++ code does not see a signal."""
_LATEST = 5.0
"""Seconds in which a stopped process ends."""
_SOON = 0.05
"""Seconds after which a signal that came in a finalizer comes again."""
_SAME = 1.0
"""Seconds in which a signal that comes again is the same one: Slurm sends it to the ranks and to their launcher, which
hands it on."""


class _FirstSignal:
    """When the first signal of what is under way came."""

    def __init__(self) -> None:
        self.time = -math.inf

    def comes_again(self) -> bool:
        """Whether a signal that comes now is that one."""
        return time.monotonic() - self.time <= _SAME


_FIRST = _FirstSignal()


class Stopped(KeyboardInterrupt):
    """A signal asks the process to stop; libraries treat it as Ctrl-C.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Raises Stopped in the main thread at the first signal, until the end of the block; a second one exits at once.

    One that comes within a second of the first is the same signal.
    """
    stopping = Event()
    numbers: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if _FIRST.comes_again():
            return
        if stopping.is_set():
            os._exit(killed_by(number))
        _FIRST.time = time.monotonic()
        stopping.set()
        numbers.append(number)
        raise Stopped(number)

    def notice(number: int) -> None:
        # Not while a run has the signals: it takes its time for a checkpoint.
        if signal.getsignal(number) is handle and not stopping.wait(_GRACE):
            _print(f"error: {Stopped(number)} while it waited for other ranks.")
            os._exit(killed_by(number))

    def raise_again(stopped: Stopped) -> None:
        # It was raised in the finalizer of an object, where Python drops exceptions.
        stopping.clear()
        _FIRST.time = -math.inf
        Timer(_SOON, os.kill, (os.getpid(), stopped.number)).start()

    with _handling(handle, notice), hook_for(Stopped, sys, "unraisablehook", raise_again):
        try:
            yield
        except Exception as error:
            # What was under way may fail otherwise once it is interrupted.
            if numbers:
                raise Stopped(numbers[0]) from error
            raise


def exit_on_signals() -> None:
    """A signal from now on ends the process at once, without a word: it has done its work, and is on its way out.

    The first one that comes again does not.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if not _FIRST.comes_again():
            os._exit(killed_by(number))

    for number in ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)


def exit_at_the_latest(status: int) -> None:
    """Ends the process with this status in 5 seconds, if it has not ended by then.

    A signal that comes while a thread starts leaves that thread without anyone to end it, and Python waits for it.
    """
    timer = Timer(_LATEST, os._exit, (status,))
    timer.daemon = True
    timer.start()


@contextmanager
def ending_on_signals() -> Iterator[Event]:
    """Returns an event that a signal sets until the end of the block; a second Ctrl-C exits at once.

    One that comes within a second of the first is the same signal.
    """
    ending = Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if not ending.is_set():
            _FIRST.time = time.monotonic()
            if is_first_on_host(os.environ):
                again = "; again ends it at once" if number == signal.SIGINT else ""
                _print(f"{signal.Signals(number).name}: writing a checkpoint, then ending{again}")
        ending.set()

    since: float | None = None

    def notice(number: int) -> None:
        nonlocal since
        if number == signal.SIGINT:
            if since is None:
                since = time.monotonic()
            elif time.monotonic() - since > _SAME:
                os._exit(killed_by(number))

    with _handling(handle, notice):
        yield ending


@contextmanager
def hook_for(kind: type[ErrorT], module: ModuleType, name: str, handle: Callable[[ErrorT], None]) -> Iterator[None]:
    """Python calls `handle` with errors of a kind instead of the hook that a module has by a name, until the end.

    Example::

        with hook_for(OSError, threading, "excepthook", print):  # of threads that an error has ended
            ...
    """
    before = getattr(module, name)

    def hook(raised: Any) -> None:
        if isinstance(raised.exc_value, kind):
            handle(raised.exc_value)
        else:
            before(raised)

    setattr(module, name, hook)
    try:
        yield
    finally:
        setattr(module, name, before)


def _print(line: str) -> None:
    # Not by print, which the signal may have interrupted.
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())


@contextmanager
def _handling(handle: Callable[[int, FrameType | None], None], notice: Callable[[int], None]) -> Iterator[None]:
    """Handles the ending signals until the end of the block; only the main thread may enter it.

    Args:
        handle: called in the main thread, as soon as that runs Python code.
        notice: called in another thread with the number of every signal, even while the main thread waits in C++.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def watch() -> None:
        with receiver:
            while number := receiver.recv(1):
                notice(number[0])

    Thread(target=watch, name="signals", daemon=True).start()
    wakeup_before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    handlers_before = {
        number: signal.signal(number, handle)
        for number in ENDING_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        sender.close()
