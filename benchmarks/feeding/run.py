"""The cases of benchmarks/reader.py and their report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, get_args

import pyarrow as pa
from annotated_types import Interval
from tabulate import tabulate

from stem_torchrec.config import parse_arguments
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import LocalOutput
from stem_torchrec.runtime.process import Process, join_process_group

from common.load import CpuTime, busy_with_others, cores
from common.machine import describe_run
from common.output import check_out, make_folder, write_table, write_whole
from feeding.logs import FEATURES, Shape, write_log
from feeding.rates import measure_rate
from feeding.slow_store import slow_store
from feeding.waiting import measure_waiting, without_experts

MODELS = {"reference": STEMOptions(), "small experts": without_experts(STEMOptions())}
CASE = ("shape", "workers", "latency_ms", "model")
"""What tells one case from another."""


@dataclass(frozen=True)
class ReaderConfig:
    """What to measure: a log of 8 features, 2 dense features, 2 labels and a group, in one file of one rank."""

    out: LocalOutput = ""
    """Folder for reader.md and reader.parquet."""
    rows: Annotated[int, Interval(ge=50_000, le=10**9)] = 2_000_000
    """Rows of the log."""
    batch_size: Annotated[int, Interval(ge=1, le=2**24)] = 4096
    """Rows of a step."""
    steps: Annotated[int, Interval(ge=1, le=10**6)] = 130
    """Steps that are timed of each training: by default more than two blocks of rows that are shuffled together."""
    latency_ms: Annotated[float, Interval(gt=0, le=60_000)] = 50
    """How long the slow store takes for each request."""
    workers: tuple[Annotated[int, Interval(ge=0, le=64)], ...] = (0, 1)
    """Reader processes; with 0 the training process reads, in a thread of its own."""
    rounds: Annotated[int, Interval(ge=1, le=1000)] = 3
    """How often each case runs, one case after the other."""


def read_command_line(args: Sequence[str] | None = None, *, description: str | None = None) -> ReaderConfig:
    """What to measure; raises UserError for values that make no sense.

    Args:
        args: the command line, that of this process if None.
        description: what `--help` shows above the options.
    """
    config = parse_arguments(ReaderConfig(), args, description=description or "")
    check_out(config.out)
    if not config.workers:
        raise UserError("--workers is empty; leave it out for the default.")
    return config


def measure(config: ReaderConfig) -> None:
    """Runs every case in every round and writes the report."""
    folder, results, start = make_folder(config.out), list[dict[str, Any]](), CpuTime.now()
    with TemporaryDirectory(prefix="reader-") as logs, join_process_group() as process:
        for shape in get_args(Shape):
            write_log(Path(logs) / shape, shape, config.rows)
        for number in range(config.rounds):
            for case in [*_rate_cases(config), *_waiting_cases(config)]:
                with slow_store(f"{logs}/{case['shape']}", case["latency_ms"] / 1000) as path:
                    result = {"round": number, **case, **_run(path, case, config, process)}
                results.append(result)
                print("  ".join(f"{name} {value}" for name, value in result.items()), flush=True)
    end = CpuTime.now()
    others = busy_with_others(end.at - start.at, end.busy - start.busy, end.own - start.own)
    _write(folder, config, results, others)


def _rate_cases(config: ReaderConfig) -> list[dict[str, Any]]:
    return [
        {"shape": shape, "workers": workers, "latency_ms": latency, "model": ""}
        for shape in get_args(Shape)
        for workers in config.workers
        for latency in (0.0, config.latency_ms)
    ]


def _waiting_cases(config: ReaderConfig) -> list[dict[str, Any]]:
    return [
        {"shape": "ids", "workers": workers, "latency_ms": latency, "model": model}
        for model in MODELS
        for workers in config.workers
        for latency in (0.0, config.latency_ms)
    ]


def _run(path: str, case: Mapping[str, Any], config: ReaderConfig, process: Process) -> Mapping[str, Any]:
    if not case["model"]:
        return measure_rate(path, batch_size=config.batch_size, workers=case["workers"])
    return measure_waiting(
        path,
        batch_size=config.batch_size,
        workers=case["workers"],
        steps=config.steps,
        model=MODELS[case["model"]],
        process=process,
    )


def _write(folder: Path, config: ReaderConfig, results: Sequence[Mapping[str, Any]], others: float) -> None:
    """Writes reader.md with the medians of each case, and reader.parquet with every run."""
    head = describe_run("reader.py", load=f"others kept {others:.1f} of {cores()} cores busy")
    write_table(folder / "reader.parquet", pa.Table.from_pylist([dict(result) for result in results]))
    of_case: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        of_case.setdefault(tuple(result[name] for name in CASE), []).append(result)
    rates, waits = [], []
    for (shape, workers, latency, model), runs in of_case.items():
        numbers = (name for name, value in runs[0].items() if name not in CASE and value is not None)
        of = {name: median(run[name] for run in runs) for name in numbers}
        if model:
            waits.append([model, workers, latency, of["step_ms"], of["waiting_ms"], 100 * of["waiting_share"]])
        else:
            cpu = of["cpu_seconds"] / of["rows"] * 1e6 if not workers else None
            rates.append([shape, workers, latency, of["rows_per_second"] / 1e6, cpu])
    note = (
        f"ids: {FEATURES} features of one id; lists: of 0 to 8 ids; weights: as lists, with a weight for each id and "
        f"two columns that weigh rows. Batches of {config.batch_size:,} rows, shuffled, of a log of {config.rows:,} "
        f"rows. With 0 workers the process reads by itself. Medians of {config.rounds} runs."
    )
    text = ["# Reader", "", *(f"- {name}: {value}" for name, value in head.items()), "", note, ""]
    names = ["", "workers", "store ms", "million rows/s", "CPU s per million rows"]
    text += ["## Rows per second", "", tabulate(rates, names, tablefmt="github", floatfmt=".2f", missingval="-"), ""]
    names = ["model", "workers", "store ms", "step ms", "waiting ms", "waiting %"]
    text += ["## Waiting for input", "", tabulate(waits, names, tablefmt="github", floatfmt=".2f"), ""]
    write_whole(folder / "reader.md", "\n".join(text))
    print(f"report: {folder / 'reader.md'}")
