"""The process of one rank of a contestant: builds it, then makes steps as it is told, until its parent goes.

benchmarks/throughput.py starts it, with a Job as the first line of its standard input. Each further line asks for as
many steps; the answer to each is a line of JSON on standard output, the first when it is ready.
"""

import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from typing import TextIO

import torch

import stem_torchrec.process
from stem_torchrec.plain import from_plain, to_plain

from throughput_limits import LIMITS, wait
from throughput_problem import Contestant, Problem
from throughput_sides import SIDES


@dataclass(frozen=True)
class Job:
    """What a process is to be."""

    contestant: Contestant
    problem: Problem
    cores: tuple[int, ...]
    """Of the machine, that this rank runs on."""


@dataclass(frozen=True)
class Answer:
    """What a rank has measured since the last answer."""

    step_ms: tuple[float, ...]
    """Until the device is done."""
    losses: tuple[float, ...]
    work: int
    """See Side.work."""
    peak_mib: float
    """The most memory it held so far: on CUDA of the GPU, else of the process."""
    page_faults: int
    """In these steps."""


def serve(job: Job, asks: TextIO, answers: TextIO) -> None:
    """Answers until there are no more questions."""
    os.sched_setaffinity(0, job.cores)
    if not job.contestant.keeps_memory:
        stem_torchrec.process.keep_freed_memory = lambda: None
    if job.contestant.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    with stem_torchrec.process.join_process_group() as process:
        side = {**SIDES, **LIMITS}[job.contestant.side](job.problem, job.contestant, process)
        for line in asks:
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
            print(json.dumps(to_plain(answer)), file=answers, flush=True)


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def main() -> None:
    """Answers on the standard output, to which nothing else is to write, not even the plan."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    job = from_plain(Job, json.loads(sys.stdin.readline()))
    serve(job, sys.stdin, answers)


if __name__ == "__main__":
    main()
