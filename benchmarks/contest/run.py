"""The command of the contests: reads what to measure, holds the contests, and writes the report after each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import torch
from annotated_types import Interval

from stem_torchrec.config import parse_arguments
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import LocalOutput
from stem_torchrec.runtime.process import trains_on_gpu

from common.load import CpuTime, busy_with_others
from common.machine import describe_run, memory_gib
from common.output import check_out, make_folder
from contest.cases import Case, contests, largest_models, possible_cases
from contest.problem import Contestant, Problem
from contest.report import Result, write_report
from contest.seats import seats
from contest.turns import Failure, Score, Turns, contest

Rounds = Annotated[int, Interval(ge=1, le=10**6)]
"""How often something runs."""


@dataclass(frozen=True)
class ThroughputConfig:
    """What to measure, on the reference model: D=16, 8 shared experts and 1 for each task, of [512, 512, 512]."""

    out: LocalOutput = ""
    """Folder for report.md, report.parquet and the plot."""
    cases: tuple[Case, ...] = ()
    """peak: a step beside matrix products alone; rows: many rows against few; others: plain PyTorch and TorchRec's
    own modules, by rows, on CPU with freed memory kept by all sides and by none; models: MMoE and PLE with tables as
    large; variants: pipelines, optimizers, kernels and layouts; balance: weights of tasks that learn, and balanced
    gradients; architectures: all other models, of two tasks or more; experts: STEM with other experts, gates and a
    penalty; losses: STEM with other losses; compiled: the dense part under torch.compile and with CUDA graphs, on a
    GPU; ranks: two against one; roofline: the tables beside copies; memory: the largest model that fits. By default all
    that this machine can measure."""
    rows: tuple[Annotated[int, Interval(ge=1, le=2**31 - 1)], ...] = (1_000, 100_000, 1_000_000)
    """Rows of each feature's tables, from few to many."""
    batch_size: tuple[Annotated[int, Interval(ge=1, le=2**24)], ...] = (4096,)
    """Rows of a batch, per rank; of several, all take turns in the same contests."""
    features: Annotated[int, Interval(ge=1, le=10_000)] = 8
    """Number of sparse features, each with a table for every task and a shared one."""
    tasks: Annotated[int, Interval(ge=1, le=1000)] = 2
    """Number of tasks."""
    rounds: Rounds = 6
    """How often each side takes its turn."""
    steps: Rounds = 4
    """Steps in a turn."""
    warmup: Rounds = 4
    """Steps before the first turn."""
    memory_gib: Annotated[float, Interval(ge=0, le=1e6)] = 0.0
    """Memory for the largest model, in GiB; by default 85 % of this machine's, or of what its first GPU has free."""


def read_command_line(args: Sequence[str] | None = None, *, description: str | None = None) -> ThroughputConfig:
    """What to measure; raises UserError for values that make no sense.

    Args:
        args: the command line, that of this process if None.
        description: what `--help` shows above the options.
    """
    config = parse_arguments(ThroughputConfig(), args, description=description or "")
    check_out(config.out)
    if not config.rows or list(config.rows) != sorted(set(config.rows)):
        raise UserError(f"--rows is {list(config.rows)}, but must be numbers from few to many.")
    if len(config.rows) < 2 and {"rows", "memory"} & set(config.cases):
        raise UserError(f"--rows is {list(config.rows)}, but the cases rows and memory need two numbers.")
    if not config.batch_size:
        raise UserError("--batch-size is empty; leave it out for the default, 4096.")
    impossible = set(config.cases) - set(possible_cases(config.tasks))
    if "architectures" in impossible:
        raise UserError("--tasks is 1, but the case architectures has models that need two; leave it out of --cases.")
    if "ranks" in impossible:
        raise UserError("two ranks need two cores, or two GPUs; leave `ranks` out of --cases.")
    if impossible:
        raise UserError("`compiled` is measured on a GPU; leave it out of --cases.")
    return config


def measure(config: ThroughputConfig) -> None:
    """Holds the contests of all cases, and writes the report after each.

    A contestant that fails leaves its contest, and the report says why. In the end that raises UserError, unless its
    dense part was compiled.
    """
    folder = make_folder(config.out)
    problem = replace(Problem(), batch_size=config.batch_size[0], features=config.features, tasks=config.tasks)
    turns = Turns(rounds=config.rounds, steps=config.steps, warmup=config.warmup)
    cases = config.cases or possible_cases(config.tasks)
    head = describe_run("throughput.py", device=_device(), **_left_out(config))
    results: dict[str, Result] = {}

    def hold(name: str, measure: Callable[[], tuple[list[Score], list[Failure]]]) -> None:
        print(f"{name}:", flush=True)
        before = CpuTime.now()
        scores, failures = measure()
        after = CpuTime.now()
        busy = busy_with_others(after.at - before.at, after.busy - before.busy, after.own - before.own)
        results[name] = Result(scores, failures, busy)
        print("\n".join(_lines(results[name])), flush=True)
        write_report(folder, head, results, problem)

    for case in cases:
        for name, contestants in contests(case, config.rows, config.batch_size).items():
            hold(name, partial(_contest, contestants, problem, turns))
        if case == "memory":
            budget = _memory_budget(config.memory_gib)
            hold(case, partial(largest_models, problem, config.rows, 1024 * budget))
    print(f"report: {folder / 'report.md'}")
    if failed := [f for each in results.values() for f in each.failures if f.is_error]:
        raise UserError(
            f"{len(failed)} contestants failed, such as {failed[0].contestant.name} with "
            f"{failed[0].contestant.rows:,} rows: {failed[0].reason}"
        )


def _contest(contestants: Sequence[Contestant], problem: Problem, turns: Turns) -> tuple[list[Score], list[Failure]]:
    """A contest, on a GPU of those that fit there together."""
    left_out: list[Failure] = []
    if trains_on_gpu():
        contestants, left_out = seats(contestants, problem, torch.cuda.mem_get_info()[0])
    scores, failures = contest(contestants, problem, turns)
    return scores, [*failures, *left_out]


def _lines(result: Result) -> list[str]:
    """A line for each contestant."""
    scores = [(score.contestant, f"{score.quantile(0.5):9.2f} ms") for score in result.scores]
    return [
        f"  {each.name:36} {f'{each.rows:,} rows':16} batch {each.batch_size:<9,} {text}"
        for each, text in [*scores, *((failure.contestant, failure.reason) for failure in result.failures)]
    ]


def _left_out(config: ThroughputConfig) -> dict[str, str]:
    """A line for the head of the report about cases that were not asked for by name and cannot be measured."""
    if config.cases:
        return {}
    reasons = {"architectures": "some models need two tasks", "ranks": "two ranks need two cores, or two GPUs"}
    possible = possible_cases(config.tasks)
    left_out = [f"{case}, as {reason}" for case, reason in reasons.items() if case not in possible]
    return {"left out": "; ".join(left_out)} if left_out else {}


def _device() -> str:
    """The device of a step, and of a CPU the features that decide how fast it multiplies."""
    if trains_on_gpu():
        return torch.cuda.get_device_name(0)
    amx = torch.cpu.get_capabilities().get("amx_bf16", False)
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}, {'with' if amx else 'without'} AMX for bf16"


def _memory_budget(wanted: float) -> float:
    """GiB for the largest model; raises UserError for more than a GPU has free."""
    free = torch.cuda.mem_get_info(0)[0] / 2**30 if trains_on_gpu() else memory_gib()
    if trains_on_gpu() and wanted > free:
        raise UserError(f"--memory-gib is {wanted:g}, but the GPU has {free:.1f} GiB free; give less.")
    return wanted or 0.85 * free
