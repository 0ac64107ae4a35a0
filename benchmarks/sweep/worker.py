"""The process of one rank of one case: measures, writes the result or why it failed, and ends with its parent.

`sweep.ranks.run_case` starts it, with a Job on its standard input.
"""

import faulthandler
import json
import os
import signal
import sys
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import join_process_group
from stem_torchrec.training.configuration import run_config

from sweep.ranks import Job


def read_job(line: bytes) -> Job:
    """The job that the parent has written as JSON."""
    values = json.loads(line)
    # Which options the configuration of a model has depends on the model.
    config = run_config(values.pop("config"))
    return replace(from_dict(Job, {**values, "config": {}}), config=config)


def run(job: Job) -> None:
    """Joins the other ranks of the case, measures, and writes the measurement."""
    # Imported late: the import takes seconds, in which this process should already end with its parent.
    from sweep.measure import measure

    # Longer than the parent waits, which then ends a case that hangs and reports why.
    with join_process_group(timeout=job.timeout + 60) as process:
        try:
            measurement = measure(job, process)
        except BaseException as error:
            # Leaving the process group could block on ranks that wait for this one.
            fail(job, error)
        if process.is_first:
            Path(job.outcome).write_text(json.dumps({"measurement": to_dict(measurement)}))


def fail(job: Job, error: BaseException) -> NoReturn:
    """Writes why the case failed, and exits at once."""
    traceback.print_exception(error)
    answer: dict[str, Any] = {"status": "refused", "reason": str(error)}
    if not isinstance(error, UserError):
        lines = str(error).strip().splitlines() or [""]
        answer = {"status": "failed", "reason": f"{type(error).__name__}: {lines[0][:300]}"}
    Path(job.outcome).write_text(json.dumps(answer))
    exit_now(1)


def exit_now(status: int) -> NoReturn:
    """Exits without waiting for threads, which may wait for other ranks."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def end_with_parent() -> None:
    """Ends this process and what it starts when its standard input closes, as happens when the parent dies."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Runs the job on standard input."""
    faulthandler.register(signal.SIGUSR1)
    job = read_job(sys.stdin.buffer.readline())
    end_with_parent()
    # When memory runs out, the system should kill this process and not its parent.
    Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        run(job)
    except BaseException as error:
        fail(job, error)
    exit_now(0)


if __name__ == "__main__":
    main()
