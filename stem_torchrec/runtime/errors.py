"""How a run ends before its time: what a user got wrong, in one sentence, or that it was asked to."""

import difflib
from collections.abc import Sequence


class UserError(ValueError):
    """A value that a user wrote and can mend: the message names the value, the place and the fix."""


class DivergedError(UserError):
    """Predictions that are no numbers any more; all ranks meet it alike."""


class DamagedError(UserError):
    """A checkpoint that cannot be read; all ranks meet it alike."""


class UnwritableError(UserError):
    """Weights or numbers of a run that a full disk, or a store, does not take; all ranks meet it alike."""


class DataError(UserError):
    """A row, column or file that breaks the schema, or a disk that is full; only the rank that meets it can name it."""


class Interrupted(Exception):
    """The run was asked to end, and a checkpoint holds all that it has done."""


class LostRankError(Exception):
    """Another rank is gone, so that this one cannot go on."""


HANG_STATUS = 3
"""Exit status of ranks that one which hangs, or is gone, has ended."""
RESUME_STATUS = 75
"""Exit status of such a run: the same command goes on (EX_TEMPFAIL of sysexits.h)."""


def reason_of(error: BaseException) -> str:
    """What a library or the system says, on one line."""
    return " ".join(str(error).split()).rstrip(".")


def nearest(name: str, names: Sequence[str]) -> str:
    """Returns `; did you mean 'x'?` for the nearest of `names`, or nothing where none is near."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
