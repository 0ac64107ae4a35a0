"""What benchmarks/serving.py measures: sides that take turns with the same rows and weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Interval
from scipy.stats import rankdata

from stem_torchrec.checkpoints.checksum import weights_checksum
from stem_torchrec.checkpoints.weights import find_weights
from stem_torchrec.config import parse_arguments
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import InputFolder, LocalFolder, LocalOutput
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.serving.export_run import ExportConfig, export_run
from stem_torchrec.serving.manifest import TablePrecision
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.run_folder import BEST_WEIGHTS, CONFIG_FILE

from common.load import CpuTime, busy_with_others, cores
from common.machine import describe_run
from common.output import check_out, make_folder, record_identity, write_table
from scorers.report import write_report
from scorers.sides import BUNDLES, SIDES, TORCHREC
from scorers.turns import seats


@dataclass(frozen=True)
class ServingConfig:
    """Which run to score with, and how often. Sides are processes that take turns, each with all cores."""

    run: InputFolder = ""
    """The run folder, on this machine."""
    out: LocalOutput = ""
    """Folder for serving.md, serving.parquet and the bundles, which are kept."""
    log: LocalFolder | None = None
    """Folder of the log, by default the run's own."""
    split: str = "valid"
    """Rows of this split are scored, and judged by its labels."""
    rows: tuple[Annotated[int, Interval(ge=1, le=10**6)], ...] = (1, 64, 4096)
    """Rows that are scored at once."""
    seconds: Annotated[float, Interval(gt=0, le=3600)] = 2
    """How long a side's turn takes; a fifth of it before, to warm up."""
    rounds: Annotated[int, Interval(ge=1, le=1000)] = 5
    """How often each side has its turn with each number of rows; the median counts."""
    compile: bool = True
    """Also measures compiled bundles, which take a C++ compiler some minutes."""


def read_command_line(args: Sequence[str] | None = None, *, description: str | None = None) -> ServingConfig:
    """What to measure; raises UserError for values that make no sense.

    Args:
        args: the command line, that of this process if None.
        description: what `--help` shows above the options.
    """
    config = parse_arguments(ServingConfig(), args, description=description or "")
    check_out(config.out)
    if not config.run or not config.rows:
        raise UserError("--run or --rows is missing; give a run folder, and numbers of rows or none for the default.")
    return config


def measure(config: ServingConfig) -> None:
    """Exports the bundles that the folder lacks, lets the sides take turns, and writes the report."""
    trained = load_config(str(path_of(config.run) / CONFIG_FILE))
    log = config.log or trained.data.path
    if log is None or not (Path(log) / config.split).is_dir():
        raise UserError(f"{log}/{config.split} is not a folder of this machine; give the log of the run as --log.")
    folder = make_folder(config.out)
    head = describe_run("serving.py")
    record_identity(
        folder / "identity.json",
        {
            **{name: head[name] for name in ("machine", "versions")},
            **{"run": config.run, "log": log},
            # The bundles that the folder has are of these.
            "weights": weights_checksum(find_weights(path_of(config.run) / BEST_WEIGHTS)),
        },
        head,
        kind="benchmark",
    )
    names = [name for name in SIDES if config.compile or not BUNDLES.get(name, ("", False))[1]]
    for precision in ("fp32", "fp16", "int8"):
        _export(config, folder / "bundles", precision)
    start, times, totals = CpuTime.now(), list[dict[str, Any]](), list[dict[str, Any]]()
    with seats(names, run=config.run, bundles=folder / "bundles", log=log, split=config.split) as taken:
        for number in range(config.rounds):
            for rows in config.rows:
                for raw in (False, True):
                    # Another side begins in each round.
                    for name in [*names[number % len(names) :], *names[: number % len(names)]]:
                        answer = taken[name].ask(do="time", rows=rows, raw=raw, seconds=config.seconds)
                        if answer["ms"]:
                            times.append(_of_turn(number, name, rows, raw, answer["ms"]))
                            print("  ".join(f"{key} {value}" for key, value in times[-1].items()), flush=True)
        with TemporaryDirectory() as predictions:
            for name in names:
                file = Path(predictions) / f"{name}.npy"
                taken[name].ask(do="predict", file=str(file))
                auc = _auc(np.load(file), trained.data.labels, f"{log}/{config.split}", log)
                seconds, memory = taken[name].start_seconds, taken[name].ask(do="memory")["mb"]
                disk = _disk_mb(config.run, folder / "bundles", name)
                totals.append({"side": name, "start_s": seconds, "memory_mb": memory, "disk_mb": disk, **auc})
    end = CpuTime.now()
    # The sides are children that have ended.
    others = busy_with_others(end.at - start.at, end.busy - start.busy, end.own - start.own)
    write_table(folder / "serving.parquet", pa.Table.from_pylist(times))
    head |= {"load": f"others kept {others:.1f} of {cores()} cores busy", "rounds": str(config.rounds)}
    write_report(folder / "serving.md", head, times, totals)
    print(f"report: {folder / 'serving.md'}")


def _export(config: ServingConfig, bundles: Path, precision: TablePrecision) -> None:
    bundles.mkdir(exist_ok=True)
    if not (bundles / precision).exists():
        compiles = config.compile and (precision, True) in BUNDLES.values()
        options = ExportConfig(run=config.run, out=str(bundles / precision), tables=precision, compile=compiles)
        export_run(replace(options, log=config.log, calibration="none"))


def _of_turn(number: int, side: str, rows: int, raw: bool, ms: Sequence[float]) -> dict[str, Any]:
    p50, p99 = np.percentile(ms, [50, 99])
    speed = rows * len(ms) / sum(ms) * 1000
    return {
        "round": number, "side": side, "rows": rows, "raw": raw, "calls": len(ms), "p50_ms": round(float(p50), 4),
        "p99_ms": round(float(p99), 4), "rows_per_second": round(speed),
    }  # fmt: skip


def _auc(probabilities: np.ndarray, tasks: Sequence[str], split: str, log: str) -> dict[str, float]:
    """AUC of each task, over the rows that have its label; ties count half."""
    labels = Columns.select(load_schema(log), labels=tuple(tasks)).labels
    table, aucs = pq.read_table(split, columns=list(labels)), {}
    for i, task in enumerate(labels):
        label = table[task].to_numpy().astype(np.float64)
        known = ~np.isnan(label)
        positive, ranks = label[known] == 1, rankdata(probabilities[known, i])
        pairs = positive.sum() * (~positive).sum()
        aucs[f"auc/{task}"] = float((ranks[positive].sum() - positive.sum() * (positive.sum() + 1) / 2) / pairs)
    return aucs


def _disk_mb(run: str, bundles: Path, side: str) -> float:
    """Files that a side reads: the weights of the run, or those of its bundle without the other program."""
    if side in TORCHREC:
        files = [path for path in (Path(run) / BEST_WEIGHTS).rglob("*")]
    else:
        precision, compiled = BUNDLES[side]
        other = "model.pt2" if compiled else "compiled.pt2"
        files = [path for path in (bundles / precision).rglob("*") if path.name != other]
    return sum(path.stat().st_size for path in files if path.is_file()) / 1e6
