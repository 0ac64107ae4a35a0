"""The process of one rank of a contestant: builds it, then makes steps on request until its parent is gone.

`contest.turns` starts it, with a Job as the first line of its standard input. Each further line asks for a number of
steps; the answer to each is a line of JSON on standard output, the first one when the contestant is ready.
"""

import json
import os
import resource
import sys
import time
from typing import TextIO
from unittest.mock import patch

import torch

from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.runtime.process import Process, join_process_group

from contest.limits import LIMITS, wait
from contest.sides import SIDES
from contest.turns import Answer, Job


def serve(job: Job, requests: TextIO, answers: TextIO) -> None:
    """Builds the contestant of `job` and answers all requests."""
    os.sched_setaffinity(0, job.cores)
    if not job.contestant.keeps_memory:
        # join_process_group calls it by this name.
        patch.object(sys.modules[Process.__module__], "keep_freed_memory").start()
    if job.contestant.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    with join_process_group() as process:
        side = {**SIDES, **LIMITS}[job.contestant.side](job.problem, job.contestant, process)
        for line in requests:
            faults, times, losses = _page_faults(), [], []
            for _ in range(int(line)):
                start = time.perf_counter()
                loss = wait(side.step, process)
                times.append((time.perf_counter() - start) * 1000)
                if loss is not None:
                    losses.append(loss.item())
            if process.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated() / 2**20
            else:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
            answer = Answer(tuple(times), tuple(losses), side.work, peak, _page_faults() - faults)
            print(json.dumps(to_dict(answer)), file=answers, flush=True)


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
