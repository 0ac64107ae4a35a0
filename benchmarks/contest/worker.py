"""The process of one rank of a contestant: builds it, then makes steps on request until its parent is gone.

`contest.turns` starts it, with a Job as the first line of its standard input. Each further line asks for a number of
steps; the answer to each is a line of JSON on standard output, the first one when the contestant is ready.
"""

import json
import os
import resource
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO
from unittest.mock import patch

import torch

from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import Process, join_process_group

from common.timing import timed
from contest.limits import LIMITS
from contest.problem import Side
from contest.sides import SIDES
from contest.turns import Answer, Job, failed


def serve(job: Job, requests: TextIO, answers: TextIO) -> None:
    """Builds the contestant of `job` and answers all requests; if it fails, the last answer says why."""
    os.sched_setaffinity(0, job.cores)
    if not job.contestant.keeps_memory:
        # join_process_group calls it by this name.
        patch.object(sys.modules[Process.__module__], "keep_freed_memory").start()
    if job.contestant.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    # The inner one ends the process at once: leaving the group of its ranks could wait for them.
    with _telling_failure(answers), join_process_group() as process, _telling_failure(answers):
        side = {**SIDES, **LIMITS}[job.contestant.side](job.problem, job.contestant, process)
        for line in requests:
            print(json.dumps(to_dict(take_turn(side, int(line), process))), file=answers, flush=True)


@contextmanager
def _telling_failure(answers: TextIO) -> Iterator[None]:
    """Answers with the reason of an error, and ends the process."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        reason = lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0][:300]}"
        print(json.dumps(to_dict(failed(reason))), file=answers, flush=True)
        sys.stderr.flush()
        os._exit(1)


def take_turn(side: Side, steps: int, process: Process) -> Answer:
    """Makes `steps` steps that are timed; the host waits for a GPU at the end only.

    On a GPU an untimed step comes first. It takes from the system the memory that the turn before has returned, so
    that a contestant which waits holds no activations.
    """
    on_gpu = process.device.type == "cuda"
    faults = _page_faults()
    first = [side.step()] if on_gpu else []
    results, times = timed(side.step, steps, process.device)
    losses = [loss for loss in [*first, *results] if loss is not None]
    values = torch.stack(losses).tolist() if losses else []
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.empty_cache()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return Answer(tuple(times), tuple(values), side.work, peak, _page_faults() - faults)


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def main() -> None:
    """Answers on standard output; everything else that is printed goes to /dev/null, the plan included."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    job = from_dict(Job, json.loads(sys.stdin.readline()))
    serve(job, sys.stdin, answers)


if __name__ == "__main__":
    main()
