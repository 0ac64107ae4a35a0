"""The process of one rank of one case: starts, measures, writes how it went, and ends when its parent is gone.

benchmarks/sharding.py starts it, with a Job on its standard input.
"""

import faulthandler
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

from stem_torchrec.errors import UserError
from stem_torchrec.plain import from_plain, to_plain
from stem_torchrec.process import join_process_group

from sweep_ranks import Job


def run(job: Job) -> None:
    """Joins the other ranks of the case, measures, and writes the measurement."""
    # Only now, as it takes seconds in which this process should already end with its parent.
    from sweep_measure import measure

    # The parent ends a case that hangs first, and knows why.
    with join_process_group(timeout=job.timeout + 60) as process:
        try:
            measurement = measure(job, process)
        except BaseException as error:
            # Leaving the process group could wait for ranks that wait for this one.
            fail(job, error)
        if process.is_first:
            Path(job.outcome).write_text(json.dumps({"measurement": to_plain(measurement)}))


def fail(job: Job, error: BaseException) -> NoReturn:
    """Writes why it failed, and leaves at once."""
    traceback.print_exception(error)
    said: dict[str, Any] = {"status": "refused", "reason": str(error)}
    if not isinstance(error, UserError):
        lines = str(error).strip().splitlines() or [""]
        said = {"status": "failed", "reason": f"{type(error).__name__}: {lines[0][:300]}"}
    Path(job.outcome).write_text(json.dumps(said))
    leave(1)


def leave(status: int) -> NoReturn:
    """Ends without waiting for threads that may wait for other ranks."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def end_with_parent() -> None:
    """Ends this process, and what it starts, when its standard input closes, as it does when the parent dies."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Does the job on standard input."""
    faulthandler.register(signal.SIGUSR1)
    job = from_plain(Job, json.loads(sys.stdin.buffer.readline()))
    end_with_parent()
    # Where memory runs out, the system is to end this process and not its parent.
    Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        run(job)
    except BaseException as error:
        fail(job, error)
    leave(0)


if __name__ == "__main__":
    main()
