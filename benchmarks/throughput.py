"""Measures training speed and memory against what a user would run instead, all sides taking turns in one run.

python benchmarks/throughput.py --out runs/throughput
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stem_torchrec.cli import parse_arguments, run_main
from stem_torchrec.errors import UserError

from sweep_machine import describe_machine, git_revision
from throughput_contest import Contestant, Score, contest
from throughput_problem import Problem
from throughput_report import write_report

Case = Literal["dense", "peak", "ranks"]


@dataclass(frozen=True)
class ThroughputConfig:
    """What to measure, on the reference model: D=16, 8 shared experts and 1 a task, of [512, 512, 512]."""

    out: str = ""
    """Folder for report.md, report.parquet and the plot."""
    cases: tuple[Case, ...] = ("peak", "dense", "ranks")
    """peak: the step beside matrix products alone; dense: against plain PyTorch and TorchRec's own modules, by rows;
    ranks: two ranks of one core against one."""
    rows: tuple[int, ...] = (1_000, 100_000, 1_000_000)
    """Rows of each feature's tables, from few to many."""
    batch_size: int = 4096
    """Rows of a batch, per rank."""
    features: int = 8
    """Sparse features, each with a table for every task and a shared one."""
    tasks: int = 2
    """Tasks."""
    rounds: int = 6
    """How often each side takes its turn."""
    steps: int = 4
    """Steps in a turn."""
    warmup: int = 4
    """Steps before the first turn."""


def cases(config: ThroughputConfig) -> dict[str, list[Contestant]]:
    """The contests by name: who trains beside whom."""
    few, many = config.rows[0], config.rows[-1]
    contests: dict[str, list[Contestant]] = {}
    if "peak" in config.cases:
        contests["peak"] = [Contestant(side, p, few) for p in ("fp32", "bf16") for side in ("gemm", "ours")]
        contests["peak"].append(Contestant("ours", "bf16", many))
        contests["peak"] += [Contestant("ours", p, few, keeps_memory=False) for p in ("fp32", "bf16")]
    if "dense" in config.cases:
        for rows in config.rows:
            ours = [Contestant("ours", p, rows) for p in ("bf16", "fp32")]
            stock = [Contestant("stock", p, rows, keeps_memory=False) for p in ("bf16", "fp32")]
            dense = [Contestant("dense", "fp32", rows, keeps_memory=kept) for kept in (False, True)]
            contests[f"dense, {rows:,} rows"] = [*ours, *stock, *dense]
    if "ranks" in config.cases:
        contests["ranks"] = [
            Contestant("ours", p, few, ranks=ranks, one_core_each=True) for p in ("fp32", "bf16") for ranks in (1, 2)
        ]
    return contests


def read_command_line(args: Sequence[str] | None = None) -> ThroughputConfig:
    """What to measure; raises UserError for what makes no sense."""
    config = parse_arguments(ThroughputConfig(), args, description=__doc__ or "")
    if not config.out:
        raise UserError("say where the results go: --out DIR.")
    for name in ("batch_size", "features", "tasks", "rounds", "steps", "warmup"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(config, name)}, but must be at least 1.")
    if not config.rows or min(config.rows) < 1:
        raise UserError(f"--rows is {list(config.rows)}, but must be one or more numbers of at least 1.")
    if "ranks" in config.cases and len(os.sched_getaffinity(0)) < 2:
        raise UserError("two ranks of one core need two cores; leave `ranks` out of --cases.")
    return config


def measure(config: ThroughputConfig) -> None:
    """Holds the contests, and writes the report after each."""
    folder = Path(config.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); give another --out.") from error
    problem = replace(Problem(), batch_size=config.batch_size, features=config.features, tasks=config.tasks)
    head = {"command": describe_command(), **describe_machine(), "revision": git_revision()}
    scores: dict[str, list[Score]] = {}
    for name, contestants in cases(config).items():
        print(f"{name}: {', '.join(contestant.name for contestant in contestants)}", flush=True)
        scores[name] = contest(contestants, problem, rounds=config.rounds, steps=config.steps, warmup=config.warmup)
        for score in scores[name]:
            print(f"  {score.contestant.name:36} {score.quantile(0.5):8.1f} ms", flush=True)
        write_report(folder, head, scores, config.batch_size)
    print(f"report: {folder / 'report.md'}")


def describe_command() -> str:
    """The command line, as a reader would type it."""
    return " ".join(["python", "benchmarks/throughput.py", *sys.argv[1:]])


if __name__ == "__main__":
    run_main(lambda: measure(read_command_line()))
