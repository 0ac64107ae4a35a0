"""torchrun for schedulers: it ends with the status of its ranks, and hands signals on to them.

python -m stem_torchrec.runtime.torchrun --nproc-per-node 2 -m stem_torchrec.train --recipe tiny

torchrun itself ends with 1 for whatever a rank ends with, so that a scheduler cannot tell a wrong option (2) from a run
that resumes (75). At a signal it ends ranks that are not done in 30 seconds; here they have as long as the scheduler
leaves them, and this host does not start them again, whatever --max-restarts is. Its options are the same.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import parse_args, run

from stem_torchrec.runtime.error_kinds import ErrorKind
from stem_torchrec.runtime.errors import reason_of
from stem_torchrec.runtime.exit_status import ExitStatus, killed_by
from stem_torchrec.runtime.signals import ENDING_SIGNALS


def main() -> None:
    """Runs the ranks of this host and ends with the status of the first one that failed."""
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _hand_on)
    # SIGQUIT is left to torchrun: it ends the ranks at once.
    arguments = parse_args(["--signals-to-handle", "SIGQUIT", *sys.argv[1:]])
    try:
        run(arguments)
    except ChildFailedError as error:
        status = status_of(error)
        if status != ExitStatus.RESUME:
            print(error, file=sys.stderr)
        sys.exit(status)
    except RendezvousError as error:
        print(
            f"error: the hosts do not meet, or the first one is lost ({reason_of(error)}); start all of them again. "
            f"[{ErrorKind.RANK}]",
            file=sys.stderr,
        )
        sys.exit(ExitStatus.LOST_RANK)


def status_of(error: ChildFailedError) -> int:
    """The status of the rank that failed first; 128 + n for one that signal n has killed.

    Example::

        status_of(error)  # 75: the run was asked to end, and resumes
    """
    _, failure = error.get_first_failure()
    return killed_by(-failure.exitcode) if failure.exitcode < 0 else failure.exitcode


def _hand_on(number: int, frame: FrameType | None) -> None:
    """Sends the signal to the ranks, waits until they have ended, and ends with their status."""
    ranks = _children()
    for pid in ranks:
        os.kill(pid, number)
    statuses = [_wait_for(pid) for pid in ranks] or [killed_by(number)]
    # A rank ends with RESUME only after all of them have written the checkpoint.
    sys.exit(ExitStatus.RESUME if ExitStatus.RESUME in statuses else max(statuses))


def _wait_for(pid: int) -> int:
    """The status of a child, which torchrun can still ask for."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    return ended.si_status if ended.si_code == os.CLD_EXITED else killed_by(ended.si_status)


def _children() -> list[int]:
    """The processes that this one has started and whose status it has not taken yet."""
    pids = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # It has ended meanwhile.
            # PID (NAME) STATE PARENT ..., where NAME may have brackets and spaces.
            if int(file.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                pids.append(int(file.parent.name))
    return pids


if __name__ == "__main__":
    main()
