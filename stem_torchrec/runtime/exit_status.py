"""The exit statuses of every command; docs/errors.md says what to do about each."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """How a command has ended. One that a signal ends exits with 128 + the number of the signal, as shells have it."""

    OK = 0
    INPUT = 2
    """An option, file, row or setting is wrong."""
    LOST_RANK = 3
    """A rank hangs or has been lost."""
    UNWRITABLE = 74
    """A disk is full, or a file system or store refuses to write (EX_IOERR of sysexits.h)."""
    RESUME = 75
    """The run was asked to end; the same command resumes it (EX_TEMPFAIL of sysexits.h)."""


def killed_by(number: int) -> int:
    """The status of a command that a signal ends.

    Example::

        killed_by(signal.SIGTERM)  # 143
    """
    return 128 + number
