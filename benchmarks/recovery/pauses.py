"""What checkpoints cost a run: the same steps with one a minute and with none, in turns."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pyarrow as pa
from annotated_types import Interval
from tabulate import tabulate

from stem_torchrec.config import parse_known_arguments
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import LocalOutput

from common.machine import describe_run
from common.output import check_out, make_folder, write_table, write_whole
from recovery.train_runs import TrainRun

LINE = [
    *("--recipe", "synthetic", "--train.epochs", "1000", "--train.eval-every", "1000000", "--train.log-every", "10"),
    *("--data.synthetic.users", "5600000", "--data.synthetic.items", "5600000", "--checkpoint.keep", "1"),
]
"""Options of the runs, with 2.0 GiB of tables: for each of 11.2 million ids, three rows of 16 numbers. Options of the
command line come after them."""


@dataclass(frozen=True)
class PauseConfig:
    """What to measure; options of train.py are taken as well and override this benchmark's own for the run."""

    out: LocalOutput = ""
    """Folder for the runs, checkpoint_pause.md and checkpoint_pause.parquet."""
    ranks: Annotated[int, Interval(ge=1, le=1024)] = 2
    """Ranks of the runs."""
    steps: Annotated[int, Interval(ge=100, le=10**9)] = 6000
    """Steps of a run; the first tenth is warm-up."""
    minutes: Annotated[float, Interval(gt=0, le=1e6)] = 1.0
    """Minutes between two checkpoints."""
    rounds: Annotated[int, Interval(ge=1, le=10**6)] = 3
    """How often each side runs; the two take turns."""


def read_command_line(
    args: Sequence[str] | None = None, *, description: str | None = None
) -> tuple[PauseConfig, list[str]]:
    """What to measure, and the options of train.py; raises UserError for values that make no sense.

    Args:
        args: the command line, that of this process if None.
        description: what `--help` shows above the options.
    """
    config, rest = parse_known_arguments(PauseConfig(), args, description=description or "")
    check_out(config.out)
    return config, rest


def measure_pauses(config: PauseConfig, options: Sequence[str]) -> None:
    """Measures both sides in turns and writes the report.

    Args:
        config: how long and how often to run.
        options: of train.py, after LINE.

    Raises UserError if a run fails.
    """
    folder = make_folder(config.out).resolve()
    rows: list[dict[str, Any]] = []
    for turn in range(config.rounds):
        for minutes in (config.minutes, None):
            line = [*LINE, "--train.max-steps", str(config.steps), "--checkpoint.minutes", str(minutes), *options]
            rows.append({"round": turn, "minutes": minutes, **measure(folder / "run", line, config)})
            print(rows[-1], flush=True)
    write_table(folder / "checkpoint_pause.parquet", pa.Table.from_pylist(rows))
    write(folder, config, rows)


def measure(run: Path, line: Sequence[str], config: PauseConfig) -> dict[str, Any]:
    """Runs once; returns the seconds of the steps after the warm-up, and the seconds and number of pauses in them."""
    shutil.rmtree(run, ignore_errors=True)
    train = TrainRun(run, line, ranks=config.ranks)
    statuses, output = train.end(24 * 3600)
    if any(statuses):
        raise UserError(f"the run failed:\n{output}")
    times: dict[int, float] = {}
    pauses = []
    warm = config.steps // 10 // 10 * 10
    for moment, text in zip(train.times, train.lines, strict=True):
        step = re.match(r"step (\d+)  \d+ ms", text)
        if step:
            times.setdefault(int(step[1]), moment)
        pause = re.match(r"step (\d+)  paused ([\d.]+) s", text)
        if pause and int(pause[1]) >= warm:
            pauses.append(float(pause[2]))
    return {"seconds": times[config.steps] - times[warm], "paused": sum(pauses), "checkpoints": len(pauses)}


def write(folder: Path, config: PauseConfig, rows: Sequence[dict[str, Any]]) -> None:
    """Writes checkpoint_pause.md from the rows of checkpoint_pause.parquet."""
    lines, shares = [], []
    for turn in range(config.rounds):
        saved, alone = (row for row in rows if row["round"] == turn)
        shares.append(saved["seconds"] / alone["seconds"] - 1)
        lines.append(
            [
                f"{saved['seconds']:.1f}", f"{alone['seconds']:.1f}", saved["checkpoints"], f"{saved['paused']:.2f}",
                f"{saved['paused'] / saved['seconds']:.2%}", f"{shares[-1]:+.2%}",
            ]
        )  # fmt: skip
    names = ["seconds with", "seconds without", "checkpoints", "paused", "share of pauses", "more time in all"]
    head = describe_run("checkpoint_pause.py")
    text = ["# What checkpoints cost", "", *(f"- {name}: {value}" for name, value in head.items()), ""]
    text += [tabulate(lines, names, tablefmt="github", disable_numparse=True), ""]
    text += [
        f"Median: {median(shares):+.2%} of time in all, with a checkpoint every {config.minutes * 60:g} seconds.",
        "",
    ]
    write_whole(folder / "checkpoint_pause.md", "\n".join(text))
    print(f"report: {folder / 'checkpoint_pause.md'}")
