"""What the benchmark of preparation measures, and its report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from annotated_types import Interval
from tabulate import tabulate

from stem_torchrec.config import parse_arguments
from stem_torchrec.runtime.path_options import LocalOutput

from common.machine import command_line, describe_run
from common.output import check_out, make_folder, record_identity, write_whole
from prepare.cases import Side, measure_case, raw_file

Rows = Annotated[int, Interval(ge=1000, le=10**12)]
_RUNS = "runs"
_LEGEND = """The median of the runs counts. Peak is the memory of the process and its children, disk what lay beside the
log (kept tables and spill), others the cores that other processes kept busy; of these the greatest of the runs."""


@dataclass(frozen=True)
class PreparationConfig:
    """Short video rows in the format of the ICME 2019 challenge, prepared by the spec `tiktok`."""

    out: LocalOutput = ""
    """Folder for preparation.md and runs/. Raw files of about 51 bytes a row are kept in it. Runs that it has are
    not measured again, so an interrupted command is repeated, and one case may be measured by itself."""
    rows: tuple[Rows, ...] = (1_000_000, 5_000_000, 50_000_000)
    """Rows of the raw files of stem-prepare alone."""
    pandas_rows: Annotated[int, Interval(ge=0, le=10**12)] = 2_000_000
    """Rows on which pandas runs beside stem-prepare; 0 leaves this out."""
    rounds: Annotated[int, Interval(ge=1, le=10**4)] = 3
    """How often each case runs, one case after the other; the median counts."""
    memory: Annotated[float, Interval(ge=0.25, le=10_000)] = 1.2
    """GiB that DuckDB may take."""
    report: bool = False
    """Whether stem-prepare writes its report as well, which pandas does not."""


def read_command_line(args: Sequence[str] | None = None, *, description: str | None = None) -> PreparationConfig:
    """What to measure; raises UserError for values that make no sense."""
    config = parse_arguments(PreparationConfig(), args, description=description or "")
    check_out(config.out)
    return config


def measure(config: PreparationConfig) -> None:
    """Runs every case in every round, unless the folder has it, and writes the report after each."""
    folder = make_folder(config.out)
    head = describe_run(
        "preparation.py",
        engine=f"duckdb {version('duckdb')}, ibis {version('ibis-framework')}",
        pandas=version("pandas"),
    )
    same = {name: head[name] for name in ("machine", "versions", "engine", "pandas", "revision")}
    identity = {**same, "memory": config.memory, "report": config.report}
    head = record_identity(folder / "identity.json", identity, head, kind="benchmark")
    (folder / _RUNS).mkdir(exist_ok=True)
    cases: list[tuple[Side, int]] = [("stem-prepare", rows) for rows in config.rows]
    if config.pandas_rows:
        cases += [("stem-prepare", config.pandas_rows), ("pandas", config.pandas_rows)]
    for number in range(config.rounds):
        for side, rows in dict.fromkeys(cases):
            file = folder / _RUNS / f"{side}-{rows}-{number}.json"
            if file.exists():
                continue
            raw = raw_file(folder, rows)
            measured = measure_case(side, raw, rows, folder, memory=config.memory, report=config.report)
            command = command_line("preparation.py")
            write_whole(file, json.dumps({"command": command, "round": number, **asdict(measured)}, indent=1))
            speed = f"{rows / measured.seconds / 1e6:.2f}M rows/s"
            used = f"CPU {measured.cpu_seconds:.1f} s, {measured.peak_gib:.2f} GiB"
            print(f"{side:14}{rows:12,} rows {measured.seconds:8.1f} s  {speed}, {used}", flush=True)
            _write(folder, head)


def _write(folder: Path, head: Mapping[str, str]) -> None:
    """The report of all runs of the folder."""
    runs: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for run in (json.loads(file.read_text()) for file in sorted((folder / _RUNS).glob("*.json"))):
        runs.setdefault((run["rows"], run["side"]), []).append(run)
    lines = []
    for (rows, side), measured in sorted(runs.items()):
        seconds = median(each["seconds"] for each in measured)
        middle = min(measured, key=lambda each: abs(each["seconds"] - seconds))
        greatest = {name: max(each[name] for each in measured) for name in ("peak_gib", "spill_gib", "others")}
        numbers = (
            f"{seconds:.1f}",
            f"{rows / seconds / 1e6:.2f}",
            f"{middle['cpu_seconds'] / rows * 1e6:.2f}",
            *(f"{number:.2f}" for number in greatest.values()),
        )
        stages = ", ".join(f"{name} {value:.1f}" for name, value in middle["stages"].items())
        lines.append((side, f"{rows:,}", str(len(measured)), *numbers, stages))
    headers = ("side", "rows", "runs", "s", "M rows/s", "CPU us/row", "peak GiB", "disk GiB", "others", "stages, s")
    table = tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
    facts = "\n".join(f"- {name}: {value}" for name, value in head.items())
    write_whole(folder / "preparation.md", f"# Preparing a log\n\n{facts}\n\n{table}\n\n{_LEGEND}\n")
