"""What the benchmark of preparation measures, and its report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated

import pyarrow as pa
from annotated_types import Interval
from tabulate import tabulate

from stem_torchrec.config import parse_arguments
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import LocalOutput

from common.load import CpuTime, busy_with_others
from common.machine import describe_run
from common.output import make_folder, write_table, write_whole
from prepare.cases import Measured, Side, measure_case, raw_file

Rows = Annotated[int, Interval(ge=1000, le=10**12)]


@dataclass(frozen=True)
class PreparationConfig:
    """Short video rows in the format of the ICME 2019 challenge, prepared by the spec `tiktok`."""

    out: LocalOutput = ""
    """Folder for preparation.md and preparation.parquet; raw files of about 51 bytes a row are kept in it."""
    rows: tuple[Rows, ...] = (1_000_000, 5_000_000, 50_000_000)
    """Rows of the raw files."""
    pandas_rows: Rows = 2_000_000
    """Rows on which pandas runs beside stem-prepare."""
    rounds: Annotated[int, Interval(ge=1, le=10**4)] = 3
    """How often each case runs, one case after the other; the median counts."""
    memory: Annotated[float, Interval(ge=0.25, le=10_000)] = 1.2
    """GiB that DuckDB may take."""


def read_command_line(args: Sequence[str] | None = None, *, description: str | None = None) -> PreparationConfig:
    """What to measure; raises UserError for values that make no sense."""
    config = parse_arguments(PreparationConfig(), args, description=description or "")
    if not config.out:
        raise UserError("say where the results go: --out DIR.")
    return config


def measure(config: PreparationConfig) -> None:
    """Runs every case in every round and writes the report."""
    folder = make_folder(config.out)
    cases: list[tuple[Side, int]] = [("stem-prepare", rows) for rows in config.rows]
    cases += [("stem-prepare", config.pandas_rows), ("pandas", config.pandas_rows)]
    runs: dict[tuple[Side, int], list[Measured]] = {case: [] for case in cases}
    before = CpuTime.now()
    for _ in range(config.rounds):
        for side, rows in runs:
            measured = measure_case(side, raw_file(folder, rows), rows, folder, config.memory)
            runs[side, rows].append(measured)
            speed = f"{rows / measured.seconds / 1e6:.2f}M rows/s"
            print(f"{side:14}{rows:12,} rows {measured.seconds:8.1f} s  {speed}", flush=True)
    after = CpuTime.now()
    others = busy_with_others(after.at - before.at, after.busy - before.busy, after.own - before.own)
    head = describe_run(
        "preparation.py",
        engine=f"duckdb {version('duckdb')}, ibis {version('ibis-framework')}",
        pandas=version("pandas"),
        others=f"other processes kept {others:.2f} cores busy",
    )
    _write(folder, head, runs)


def _write(folder: Path, head: Mapping[str, str], runs: Mapping[tuple[Side, int], Sequence[Measured]]) -> None:
    lines = []
    for (side, rows), measured in runs.items():
        seconds = median(each.seconds for each in measured)
        middle = min(measured, key=lambda each: abs(each.seconds - seconds))
        stages = ", ".join(f"{name} {value:.1f}" for name, value in middle.stages.items())
        peak, spill = (max(getattr(each, name) for each in measured) for name in ("peak_gib", "spill_gib"))
        lines.append(
            (side, f"{rows:,}", f"{seconds:.1f}", f"{rows / seconds / 1e6:.2f}", f"{peak:.2f}", f"{spill:.2f}", stages)
        )
    headers = ("side", "rows", "s", "M rows/s", "peak GiB", "disk GiB", "stages, s")
    table = tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
    facts = "\n".join(f"- {name}: {value}" for name, value in head.items())
    write_whole(folder / "preparation.md", f"# Preparing a log\n\n{facts}\n\n{table}\n")
    rows_of_table = [
        asdict(each) | {"stages": list(each.stages.items())} for runs_of in runs.values() for each in runs_of
    ]
    write_table(folder / "preparation.parquet", pa.Table.from_pylist(rows_of_table))
