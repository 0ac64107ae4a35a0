"""How every command ends: one sentence and an exit status for each kind of error."""

import errno
import os
import sys
from collections.abc import Callable

from stem_torchrec.runtime.errors import (
    DataError,
    Interrupted,
    LaunchError,
    LostRankError,
    UnwritableError,
    UserError,
    reason_of,
)
from stem_torchrec.runtime.exit_status import ExitStatus
from stem_torchrec.runtime.launch_environment import is_first_on_host

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

_TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}


def run_main(main: Callable[[], None], *, every_rank_speaks: bool = False) -> None:
    """Calls `main` and ends the process with an exit status for what it raises.

    A UserError becomes one sentence on standard error and status 2, a LostRankError one sentence and status 3,
    an UnwritableError one sentence and status 74, Interrupted status 75. A reader process that was killed counts as a
    lost rank. An OSError that nothing below has explained
    becomes a sentence as well, with status 2 for a wrong path and 74 for a disk or store that fails.

    All ranks of a host raise the same error for a wrong configuration, so only the first one prints it. A DataError is
    raised by the one rank that read the row, and that rank prints it, as it does a LaunchError and an OSError.

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
        speaks = every_rank_speaks or isinstance(error, DataError | LaunchError) or is_first_on_host(os.environ)
        status = ExitStatus.UNWRITABLE if isinstance(error, UnwritableError) else ExitStatus.INPUT
        _end(status, sentence if speaks else None)
    except OSError as error:
        wrong = error.errno in _WRONG_PATH or error.errno in _TOO_MANY_FILES
        _end(ExitStatus.INPUT if wrong else ExitStatus.UNWRITABLE, _sentence(error))
    except RuntimeError as error:
        # torch raises it wherever the main thread is.
        if not str(error).startswith("DataLoader worker"):
            raise
        _end(
            ExitStatus.LOST_RANK,
            f"a reader process (--data.num-workers) was lost ({reason_of(error)[:200]}), perhaps because memory ran "
            "out; the same command resumes from the last checkpoint.",
        )


def _sentence(error: OSError) -> str:
    """Names the file, if the system does, and the reason."""
    reason = " ".join((error.strerror or str(error) or type(error).__name__).split()).rstrip(".")
    path = error.filename2 or error.filename
    if error.errno in _TOO_MANY_FILES:
        return f"this process cannot open {path or 'another file'} ({reason}); allow more with ulimit -n."
    if error.errno in _WRONG_PATH:
        return f"{path or 'a file'} cannot be used ({reason}); give another path."
    return f"{path or 'a file'} cannot be read or written ({reason}); make room, or give a path on another disk."


def _end(status: ExitStatus, sentence: str | None) -> None:
    if sentence is not None:
        print(f"error: {sentence}", file=sys.stderr)
    sys.exit(status)
