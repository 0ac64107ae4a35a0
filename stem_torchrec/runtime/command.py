"""How every command ends: one sentence and an exit status, for each kind of error and signal."""

import errno
import os
import re
import sys
import threading
from collections.abc import Callable

from stem_torchrec.runtime.error_kinds import ErrorKind
from stem_torchrec.runtime.errors import (
    AllocationError,
    DataError,
    Interrupted,
    LaunchError,
    LostRankError,
    UnwritableError,
    UserError,
)
from stem_torchrec.runtime.exit_status import ExitStatus, killed_by
from stem_torchrec.runtime.launch_environment import is_first_on_host
from stem_torchrec.runtime.memory import naming_lack_of_memory
from stem_torchrec.runtime.signals import Stopped, exit_at_the_latest, exit_on_signals, hook_for, stopping_on_signals
from stem_torchrec.runtime.standard_streams import keep_streams
from stem_torchrec.runtime.versions import missing_package

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
    an UnwritableError one sentence and status 74, Interrupted status 75, a signal one sentence and 128 + its number. A
    reader process that was killed counts as a lost rank. An OSError that nothing below has explained becomes a sentence
    as well, with status 2 for a wrong path or too few files and 74 for a disk or store that fails, as does a lack of
    memory, with status 2, and a machine without torchrec or fbgemm. The kind of the error stands behind its sentence,
    as [STEM-OPTION].

    All ranks of a host raise the same error for a wrong configuration, so only the first one prints it. A DataError is
    raised by the one rank that read the row, and that rank prints it, as it does a LaunchError, a lack of memory and an
    OSError. If nobody reads what the command prints any more, it continues; text that a full disk swallows ends an
    otherwise complete one with status 74.

    Args:
        main: the command. What takes seconds to import, it imports itself: signals are handled from here on.
        every_rank_speaks: every rank prints its error, for ranks that do different things.
    """
    output = keep_streams()
    status, sentence = _outcome(main, every_rank_speaks=every_rank_speaks)
    if output is not None:
        exit_on_signals()
        if status > killed_by(0):
            exit_at_the_latest(status)
    sys.stdout.flush()
    if status == ExitStatus.OK and output is not None and output.failure is not None:
        sentence = f"standard output cannot be written ({_reason(output.failure)})."
        status, sentence = ExitStatus.UNWRITABLE, _with_kind(sentence, ErrorKind.WRITE)
    if sentence:
        print(f"error: {sentence}", file=sys.stderr)
    if status:
        sys.exit(status)


def _outcome(main: Callable[[], None], *, every_rank_speaks: bool) -> tuple[int, str]:
    """The exit status, and the sentence that this rank prints."""
    is_first = every_rank_speaks or is_first_on_host(os.environ)
    try:
        with (
            stopping_on_signals(),
            hook_for(OSError, threading, "excepthook", _thread_has_ended),
            naming_lack_of_memory(),
        ):
            main()
    except Interrupted:
        return ExitStatus.RESUME, ""
    except Stopped as error:
        return killed_by(error.number), f"{error} before it was complete." if is_first else ""
    except LostRankError as error:
        return ExitStatus.LOST_RANK, _with_kind(str(error), ErrorKind.RANK)
    except UserError as error:
        # The error of a reader process comes wrapped in its traceback; the sentence follows the last name.
        sentence = str(error).rsplit("DataError: ", 1)[-1].strip()
        status, kind = ExitStatus.INPUT, error.kind
        if _comes_from_storage(error):
            status, kind = ExitStatus.UNWRITABLE, ErrorKind.WRITE
        speaks = is_first or isinstance(error, DataError | LaunchError | AllocationError)
        return status, _with_kind(sentence, kind) if speaks else ""
    except OSError as error:
        path = error.filename2 or error.filename or "a file"
        if error.errno in _TOO_MANY_FILES:
            sentence = f"{path} cannot be opened ({_reason(error)}); allow more files with ulimit -n."
            return ExitStatus.INPUT, _with_kind(sentence, ErrorKind.PATH)
        if not _comes_from_storage(error):
            sentence = f"{path} cannot be used ({_reason(error)}); give another path."
            return ExitStatus.INPUT, _with_kind(sentence, ErrorKind.PATH)
        fix = (
            "check the store and your credentials"
            if "://" in str(path)
            else "make room, or give a path on another disk"
        )
        sentence = f"{path} cannot be read or written ({_reason(error)}); {fix}."
        return ExitStatus.UNWRITABLE, _with_kind(sentence, ErrorKind.WRITE)
    except ModuleNotFoundError as error:
        if not (sentence := missing_package(error)):
            raise
        return ExitStatus.INPUT, _with_kind(sentence, ErrorKind.INSTALL) if is_first else ""
    except SystemExit as exit_:
        # --help ends so.
        if exit_.code:
            raise
    return ExitStatus.OK, ""


def _with_kind(sentence: str, kind: ErrorKind) -> str:
    return f"{sentence} [{kind}]"


def _thread_has_ended(error: OSError) -> None:
    """Prints one line for a thread of a library that a disk or store stops; who needs the thread gets the error too."""
    print(f"note: a thread in the background has ended ({_reason(error)})", file=sys.stderr)


def _comes_from_storage(error: BaseException) -> bool:
    """Whether a disk or store fails, and not what the user wrote; also where a UserError has explained it."""
    if isinstance(error, UnwritableError):
        return True
    if isinstance(error, LaunchError):
        return False
    if isinstance(error, OSError):
        return error.errno not in _WRONG_PATH | _TOO_MANY_FILES
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno is None:
        return False  # Of a damaged file, by Arrow.
    return cause is not None and _comes_from_storage(cause)


def _reason(error: OSError) -> str:
    # Arrow's message ends with the system's, and that of a reader process, behind its traceback, as well.
    lines = re.sub(r".*Detail: \[errno \d+\] ", "", error.strerror or str(error)).strip().splitlines()
    return lines[-1].rstrip(".") if lines else type(error).__name__
