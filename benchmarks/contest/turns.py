"""A contest: processes that are built side by side and take turns, so that drift of the machine affects all of them."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from statistics import median
from typing import IO

import numpy as np

from stem_torchrec.config.serialization import from_dict, to_dict

from common.processes import module_command, module_path, rank_environments
from contest.problem import Contestant, Problem


@dataclass(frozen=True)
class Job:
    """What the process of one rank gets before it starts to answer."""

    contestant: Contestant
    problem: Problem
    cores: tuple[int, ...]
    """Cores of the machine that this rank may use."""


@dataclass(frozen=True)
class Answer:
    """What a rank has measured since the last answer."""

    step_ms: tuple[float, ...]
    """Time of each step by the device's clock."""
    losses: tuple[float, ...]
    """Loss of each step, those that are not timed included; empty for the limits of the machine."""
    work: int
    """What a step takes; see Side.work."""
    peak_mib: float
    """Peak of memory so far: of the GPU on CUDA, else of the process."""
    page_faults: int
    """Page faults in these steps."""
    failure: str = ""
    """Why the rank could not make its steps; the rest is then empty."""


@dataclass(frozen=True)
class Failure:
    """A contestant that left its contest, or did not enter it."""

    contestant: Contestant
    reason: str
    is_error: bool
    """Whether the command fails in the end."""


@dataclass(frozen=True)
class Turns:
    """How long a contest is."""

    rounds: int
    """How often each side takes its turn."""
    steps: int
    """Steps in a turn."""
    warmup: int
    """Steps before the first turn."""


@dataclass(frozen=True)
class Score:
    """What a contestant has measured in all its turns."""

    contestant: Contestant
    step_ms: tuple[tuple[float, ...], ...]
    """By round, the time of each step until the last rank ended it."""
    losses: tuple[float, ...]
    """Loss of every step, warm-up included, as the mean over the ranks; empty for the limits of the machine."""
    work: int
    """What a step takes on one rank; see Side.work."""
    peak_mib: float
    """Peak of memory of the rank that took the most: of the GPU on CUDA, else of the process."""
    faults_per_step: float
    """Page faults of one rank in a measured step."""

    def quantile(self, share: float) -> float:
        """The quantile of all step times, in ms."""
        return float(np.quantile(np.concatenate([np.array(times) for times in self.step_ms]), share))

    def rounds(self) -> list[float]:
        """The median step in ms, by round."""
        return [median(times) for times in self.step_ms]


def contest(contestants: Sequence[Contestant], problem: Problem, turns: Turns) -> tuple[list[Score], list[Failure]]:
    """Builds all contestants and warms them up, then lets them make steps in turn.

    Returns the scores in order, and the contestants whose processes failed, without whom the contest went on.
    """
    failures: dict[int, Failure] = {}
    answers: list[list[list[Answer]]] = [[] for _ in contestants]
    with ExitStack() as stack:
        groups = [stack.enter_context(_running(contestant, problem)) for contestant in contestants]
        for turn in range(-1, turns.rounds):
            # Turn -1 is the warm-up. Every other one runs backward, so that no contestant always follows the same one.
            for i in list(range(len(groups)))[:: -1 if turn > 0 and turn % 2 else 1]:
                if i in failures:
                    continue
                answered = ask(groups[i], turns.warmup if turn < 0 else turns.steps)
                if reason := next((answer.failure for answer in answered if answer.failure), ""):
                    # Whether the dense part can be compiled is a question that a contest may answer with no.
                    failures[i] = Failure(contestants[i], reason, is_error=contestants[i].dense_part == "eager")
                answers[i].append(answered)
    scores = [
        _score(contestant, first, measured, turns)
        for i, (contestant, (first, *measured)) in enumerate(zip(contestants, answers, strict=True))
        if i not in failures
    ]
    return scores, list(failures.values())


def ask(ranks: Sequence["subprocess.Popen[str]"], steps: int) -> list[Answer]:
    """Lets all ranks of a contestant make `steps` steps at the same time; returns their answers by rank."""
    for rank in ranks:
        with suppress(BrokenPipeError):  # It has ended, and its last line says why.
            print(steps, file=_pipe(rank.stdin), flush=True)
    return [_read_answer(_pipe(rank.stdout).readline()) for rank in ranks]


def failed(reason: str) -> Answer:
    """The answer of a rank that could not make its steps."""
    return Answer((), (), work=0, peak_mib=0.0, page_faults=0, failure=reason)


def _read_answer(line: str) -> Answer:
    return from_dict(Answer, json.loads(line)) if line else failed("its process ended early; its error is above.")


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@contextmanager
def _running(contestant: Contestant, problem: Problem) -> Iterator[list["subprocess.Popen[str]"]]:
    """Starts the processes of a contestant's ranks, and kills them at the end."""
    cores = sorted(os.sched_getaffinity(0))
    processes = []
    try:
        for rank, environment in enumerate(rank_environments(contestant.ranks)):
            rank_cores = (cores[rank % len(cores)],) if contestant.one_core_each else tuple(cores)
            job = Job(contestant, problem.of(contestant), rank_cores)
            process = subprocess.Popen(
                module_command("contest.worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment | module_path(),
                start_new_session=True,  # Ctrl-C is for this process, which ends them.
            )
            processes.append(process)
            print(json.dumps(to_dict(job)), file=_pipe(process.stdin), flush=True)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _score(contestant: Contestant, warm: list[Answer], measured: list[list[Answer]], turns: Turns) -> Score:
    by_round = tuple(
        tuple(max(times) for times in zip(*(answer.step_ms for answer in ranks), strict=True)) for ranks in measured
    )
    by_step = [zip(*(answer.losses for answer in ranks), strict=True) for ranks in [warm, *measured]]
    return Score(
        contestant=contestant,
        step_ms=by_round,
        losses=tuple(sum(ranks) / len(ranks) for losses in by_step for ranks in losses),
        work=warm[0].work,
        peak_mib=max(answer.peak_mib for ranks in measured for answer in ranks),
        faults_per_step=sum(ranks[0].page_faults for ranks in measured) / (turns.steps * turns.rounds),
    )
