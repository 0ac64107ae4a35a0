"""How every command ends: one sentence and an exit status for each kind of error."""

import errno
import os
import sys
from collections.abc import Callable

from stem_torchrec.runtime.errors import DataError, Interrupted, LostRankError, UnwritableError, UserError
from stem_torchrec.runtime.exit_status import ExitStatus

_WRONG_PATH = {
    errno.EACCES,
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
}
"""Errors of the system that another path mends; the others, such as a full disk, come from what is below the path."""


def run_main(main: Callable[[], None], *, every_rank_speaks: bool = False) -> None:
    """Calls `main` and ends the process with an exit status for what it raises.

    A UserError becomes one sentence on standard error and status 2, a LostRankError one sentence and status 3,
    an UnwritableError one sentence and status 74, Interrupted status 75. An OSError that nothing below has explained
    becomes a sentence as well, with status 2 for a wrong path and 74 for a disk or store that fails.

    All ranks of a host raise the same error for a wrong configuration, so only the first one prints it. A DataError is
    raised by the one rank that read the row, and that rank prints it, as it does an OSError.

    Args:
        main: the command.
        every_rank_speaks: every rank prints its error, for ranks that do different things.
    """
    try:
        main()
    except Interrupted:
        sys.exit(ExitStatus.RESUME)
    except LostRankError as error:
        _end(ExitStatus.LOST_RANK, str(error))
    except UserError as error:
        # The error of a reader process comes wrapped in its traceback; the sentence follows the last name.
        sentence = str(error).rsplit("DataError: ", 1)[-1].strip()
        speaks = every_rank_speaks or isinstance(error, DataError) or os.environ.get("LOCAL_RANK", "0") == "0"
        status = ExitStatus.UNWRITABLE if isinstance(error, UnwritableError) else ExitStatus.INPUT
        _end(status, sentence if speaks else None)
    except OSError as error:
        _end(ExitStatus.INPUT if error.errno in _WRONG_PATH else ExitStatus.UNWRITABLE, _sentence(error))


def _sentence(error: OSError) -> str:
    """Names the file, if the system does, and the reason."""
    reason = " ".join((error.strerror or str(error) or type(error).__name__).split()).rstrip(".")
    path = error.filename2 or error.filename
    if error.errno in _WRONG_PATH:
        return f"{path or 'a file'} cannot be used ({reason}); give another path."
    return f"{path or 'a file'} cannot be read or written ({reason}); make room, or give a path on another disk."


def _end(status: ExitStatus, sentence: str | None) -> None:
    if sentence is not None:
        print(f"error: {sentence}", file=sys.stderr)
    sys.exit(status)
