"""Why a run ends early: a mistake of the user, in one sentence, or a request to end."""

import difflib
from collections.abc import Sequence


class UserError(ValueError):
    """A value that a user wrote and can correct: the message names the value, the place and the fix.

    At the command line it is printed as one sentence, without a traceback, and the exit status is 2.

    Example::

        UserError("--data.batch-size is 0, but must be at least 1.")
    """


class DivergedError(UserError):
    """Losses or predictions are not finite; raised on all ranks."""


class DamagedError(UserError):
    """A checkpoint cannot be read; raised on all ranks."""


class UnwritableError(UserError):
    """Weights or metrics of a run cannot be written, for example to a full disk; raised on all ranks."""


class DataError(UserError):
    """A row, column or file breaks the schema, or a disk is full; raised only on the rank that reads or writes it."""


class LaunchError(UserError):
    """The variables of a launcher do not fit this process or each other; raised only on the rank that has them."""


class Interrupted(Exception):
    """The run was asked to end; a checkpoint holds all that it has done."""


class LostRankError(Exception):
    """Another rank has ended, so this one cannot continue."""


def reason_of(error: BaseException) -> str:
    """The message of an error of a library or the system, on one line.

    Example::

        reason_of(OSError(28, "No space left on device"))  # "[Errno 28] No space left on device"
    """
    return " ".join(str(error).split()).rstrip(".")


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
