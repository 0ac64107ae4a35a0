"""Why a run ends early: a mistake of the user, in one sentence, or a request to end."""

import difflib
import sys
from collections.abc import Sequence

from stem_torchrec.runtime.error_kinds import ErrorKind, kind_of_module


class UserError(ValueError):
    """A value that a user wrote and can correct: the message names the value, the place and the fix.

    At the command line it is printed as one sentence, without a traceback, and the exit status is 2.

    Example::

        UserError("--data.batch-size is 0, but must be at least 1.")
    """

    of_class: ErrorKind | None = None
    """The kind of a class that has its own."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        # It travels in the pickle to the other ranks, which the line that raised it does not.
        self.kind = self.of_class or kind_of_module(_raising_module())
        """Where the mistake was noticed; printed behind the sentence."""


class DivergedError(UserError):
    """Losses or predictions are not finite; raised on all ranks."""

    of_class = ErrorKind.DIVERGED


class NoMemoryError(UserError):
    """A run takes more memory than there is; raised on all ranks."""


class AllocationError(NoMemoryError):
    """An allocation has failed; raised only on the rank where it did."""

    of_class = ErrorKind.MEMORY


class DamagedError(UserError):
    """A checkpoint cannot be read; raised on all ranks."""

    of_class = ErrorKind.DAMAGED


class UnwritableError(UserError):
    """Weights or metrics of a run cannot be written, for example to a full disk; raised on all ranks."""

    of_class = ErrorKind.WRITE


class DataError(UserError):
    """A row, column or file breaks the schema, or a disk is full; raised only on the rank that reads or writes it."""

    of_class = ErrorKind.ROW


class LaunchError(UserError):
    """The variables of a launcher do not fit this process or each other; raised only on the rank that has them."""

    of_class = ErrorKind.LAUNCH


class Interrupted(Exception):
    """The run was asked to end; a checkpoint holds all that it has done."""


class LostRankError(Exception):
    """Another rank has ended, so this one cannot continue."""


def _raising_module() -> str:
    """The module that makes an error of this one."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__"))


def reason_of(error: BaseException) -> str:
    """The message of an error of a library or the system, on one line; of a KeyError, that its key is missing.

    Example::

        reason_of(OSError(28, "No space left on device"))  # "[Errno 28] No space left on device"
    """
    missing = " is missing" if isinstance(error, KeyError) else ""
    return " ".join(str(error).split()).rstrip(".") + missing


def system_cause(error: BaseException) -> OSError | None:
    """The error of the system that another error was raised from, directly or by way of others.

    Example::

        # raise UserError("a.json cannot be written ...") from OSError(28, "No space left on device")
        system_cause(error)  # OSError(28, "No space left on device")
    """
    cause = error.__cause__
    return cause if cause is None or isinstance(cause, OSError) else system_cause(cause)


def nearest(name: str, names: Sequence[str]) -> str:
    """Returns `; did you mean 'x'?` for the most similar of `names`, or an empty string if none is similar.

    Example::

        nearest("uidd", ["uid", "tags"])  # "; did you mean 'uid'?"
    """
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
