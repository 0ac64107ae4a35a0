"""Standard output and error that outlive their readers: a log collector that dies, or `| head`, ends no command."""

import errno
import io
import os
import sys
from typing import Any

_READER_GONE = {errno.EPIPE, errno.EIO, errno.ECONNRESET, errno.ENOTCONN}
"""Errors of a pipe, terminal or socket that nobody reads any more."""


class StandardStream(io.FileIO):
    """Writes to standard output or error; what cannot be written is dropped.

    Args:
        descriptor: 1 for standard output, 2 for standard error.
    """

    failure: OSError | None = None
    """Why text was lost, such as a full disk; None if only the reader has gone."""
    replaced: io.TextIOBase | None = None
    """The stream in whose place this one stands."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)

    def write(self, data: Any, /) -> int:
        """Writes as io.FileIO does, without its errors."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno in _READER_GONE:
                # Also for the processes that this one starts.
                _open_to_nowhere(self.fileno())
            else:
                self.failure = error
            return memoryview(data).nbytes


def keep_streams() -> StandardStream | None:
    """Makes whatever this process prints from now on raise no error, wherever it goes.

    Returns standard output, whose `failure` tells whether text was lost, or None where a test has its own.
    """
    # A closed descriptor would be given to the next file that is opened, and libraries would print into that file.
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_to_nowhere(descriptor)
    _keep("stderr", 2)
    return _keep("stdout", 1)


def _keep(name: str, descriptor: int) -> StandardStream | None:
    stream = getattr(sys, name)
    if not _writes_to(stream, descriptor):
        return None
    raw = StandardStream(descriptor)
    # It would close the descriptor if nobody had it any more.
    raw.replaced = stream
    unbuffered = stream is not None and stream.write_through
    text = io.TextIOWrapper(
        # python -u and PYTHONUNBUFFERED write at once.
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=None if stream is None else stream.encoding,
        # Names of files and features may have characters that the encoding lacks.
        errors="backslashreplace",
        line_buffering=stream is not None and stream.line_buffering,
        write_through=unbuffered,
    )
    setattr(sys, name, text)
    return raw


def _writes_to(stream: io.TextIOBase | None, descriptor: int) -> bool:
    if stream is None:
        # Python makes none where the descriptor was closed when it started.
        return True
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):
        return False


def _open_to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
