"""Rows per second and peak memory of exact metrics, beside sklearn and torchmetrics."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import pyarrow as pa
from annotated_types import Interval
from tabulate import tabulate

from stem_torchrec.config import parse_arguments
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import LocalOutput

from common.machine import describe_run
from common.output import check_out, make_folder, write_table, write_whole
from common.processes import module_command, module_path, rank_environments

Side = Literal["ours", "sklearn", "torchmetrics"]
"""Who computes the metrics."""
Case = tuple[Side, int, int]
"""A side, its number of ranks, and the rows over all ranks."""


@dataclass(frozen=True)
class MetricsConfig:
    """What to measure: one task, rows whose labels follow the logits, a fiftieth as many users as rows."""

    out: LocalOutput = ""
    """Folder for metrics.md and metrics.parquet."""
    rows: tuple[Annotated[int, Interval(ge=1, le=10**12)], ...] = (1_000_000, 10_000_000, 30_000_000)
    """Rows of the evaluation set, over all ranks."""
    ranks: tuple[Annotated[int, Interval(ge=1, le=1024)], ...] = (1, 2)
    """Numbers of ranks for ours; the other sides have one."""
    rounds: Annotated[int, Interval(ge=1, le=10**6)] = 3
    """How often each case runs, in new processes each time, one case after the other."""


def read_command_line(args: Sequence[str] | None = None, *, description: str | None = None) -> MetricsConfig:
    """What to measure; raises UserError for values that make no sense.

    Args:
        args: the command line, that of this process if None.
        description: what `--help` shows above the options.
    """
    config = parse_arguments(MetricsConfig(), args, description=description or "")
    check_out(config.out)
    if not config.rows or not config.ranks:
        raise UserError("--rows or --ranks is empty; leave it out for the default.")
    return config


def measure(config: MetricsConfig) -> None:
    """Runs every case in every round and writes the report; raises UserError if a run fails."""
    folder = make_folder(config.out)
    cases: list[Case] = [("ours", ranks, rows) for rows in config.rows for ranks in config.ranks]
    cases += [(side, 1, rows) for rows in config.rows for side in ("sklearn", "torchmetrics")]
    cases.sort(key=lambda case: case[2])
    runs: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(config.rounds):
        for case in cases:
            answer = run_case(*case)
            runs[case].append(answer)
            print(f"{case[0]:13} {case[1]} ranks {case[2]:12,} rows {answer['seconds']:7.1f} s", flush=True)
    write(folder, config, runs)


def run_case(side: Side, ranks: int, rows: int) -> dict[str, Any]:
    """Runs a case once; returns for each number its maximum over the ranks."""
    command = module_command("studies.metrics_worker", json.dumps([side, rows]))
    processes: list[subprocess.Popen[str]] = []
    try:
        for environment in rank_environments(ranks):
            # In sessions of their own, as Ctrl-C is for this process, which ends them.
            options: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
            processes.append(subprocess.Popen(command, env=environment | module_path(), **options))
        answers = [process.communicate()[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise UserError(f"{side} with {rows:,} rows on {ranks} ranks failed; its error is above.")
    parsed = [json.loads(answer.splitlines()[-1]) for answer in answers]
    return {name: max(answer[name] for answer in parsed) for name in parsed[0]}


def write(folder: Path, config: MetricsConfig, runs: Mapping[Case, Sequence[Mapping[str, Any]]]) -> None:
    """Writes metrics.md with the medians of each case, and metrics.parquet with every run."""
    head = describe_run("metrics.py")
    lines, raw = [], []
    for (side, ranks, rows), of_case in runs.items():
        raw += [{"side": side, "ranks": ranks, "rows": rows, **run} for run in of_case]
        seconds, peak = (median(run[name] for run in of_case) for name in ("seconds", "peak_mib"))
        lines.append([side, ranks, rows, seconds, rows / seconds / 1e6, peak, of_case[0]["auc"]])
    write_table(folder / "metrics.parquet", pa.Table.from_pylist(raw))
    names = ["", "ranks", "rows", "seconds", "million rows/s", "MiB per rank", "AUC"]
    table = tabulate(lines, names, tablefmt="github", intfmt=",", floatfmt=("", "", "", ".1f", ".2f", ",.0f", ".12f"))
    note = (
        "ours: AUC, gAUC, logloss, NE and PCOC; sklearn: roc_auc_score; torchmetrics: BinaryAUROC(thresholds=None). "
        f"Medians of {config.rounds} runs, each in new processes; MiB are those added after the imports."
    )
    text = ["# Exact metrics", "", *(f"- {name}: {value}" for name, value in head.items()), "", table, "", note, ""]
    write_whole(folder / "metrics.md", "\n".join(text))
    print(f"report: {folder / 'metrics.md'}")
