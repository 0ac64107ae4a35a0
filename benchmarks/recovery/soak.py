"""A soak: one run that is killed again and again and restarted each time, against the same run left alone."""

import json
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from annotated_types import Interval
from tabulate import tabulate

from stem_torchrec.config import parse_known_arguments
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import LocalOutput

from common.machine import describe_run
from common.output import check_out, make_folder, write_table, write_whole
from recovery.train_runs import TrainRun, differences

LINE = [
    *("--recipe", "tiny", "--model.dropout", "0.1", "--data.batch-size", "128"),
    *("--data.synthetic.train-rows", "100000", "--train.epochs", "60", "--train.eval-every", "200"),
    *("--checkpoint.steps", "20", "--checkpoint.keep", "2"),
]
"""Options of the run; those of the command line come after them."""
_RESUMED = re.compile(r"[a-z ]+ after step (\d+) from ")
"""The line of a run that resumes from a checkpoint."""


@dataclass(frozen=True)
class FaultsConfig:
    """What to survive; options of train.py are taken as well and override this benchmark's own for the run."""

    out: LocalOutput = ""
    """Folder for both runs, faults.md and faults.parquet."""
    kills: Annotated[int, Interval(ge=1, le=10**6)] = 100
    """How often to kill the run, each time one rank or all ranks."""
    ranks: Annotated[int, Interval(ge=1, le=1024)] = 2
    """Ranks of the run."""
    seconds: Annotated[float, Interval(gt=0, le=1e6)] = 6.0
    """A kill comes at a random moment within this many seconds after the first step of a life, or after its start."""
    seed: Annotated[int, Interval(ge=0, le=2**63 - 1)] = 0
    """Seed of the moments and victims."""


def read_command_line(
    args: Sequence[str] | None = None, *, description: str | None = None
) -> tuple[FaultsConfig, list[str]]:
    """What to survive, and the options of train.py; raises UserError for values that make no sense.

    Args:
        args: the command line, that of this process if None.
        description: what `--help` shows above the options.
    """
    config, rest = parse_known_arguments(FaultsConfig(), args, description=description or "")
    check_out(config.out)
    return config, rest


def soak(config: FaultsConfig, options: Sequence[str]) -> None:
    """Runs both and writes the report.

    Args:
        config: how often and when to kill.
        options: of train.py, after LINE.

    Raises UserError if a run fails without being killed.
    """
    folder = make_folder(config.out).resolve()
    line = [*LINE, *options]
    begin = time.perf_counter()
    statuses, output = TrainRun(folder / "whole", line, ranks=config.ranks).end(24 * 3600)
    if any(statuses):
        raise UserError(f"the run that is left alone failed:\n{output}")
    seconds_alone = time.perf_counter() - begin
    begin, dice = time.perf_counter(), random.Random(config.seed)
    lives: list[dict[str, Any]] = []
    while not lives or not lives[-1]["ended"]:
        with TrainRun(folder / "killed", line, ranks=config.ranks) as run:
            lives.append(live(run, config, dice, kill=len(lives) < config.kills))
        print(f"life {len(lives)}: {json.dumps(lives[-1])}", flush=True)
    write(folder, lives, seconds_alone=seconds_alone, seconds_killed=time.perf_counter() - begin)


def live(run: TrainRun, config: FaultsConfig, dice: random.Random, *, kill: bool) -> dict[str, Any]:
    """Lets a run live until it is killed at a random moment or ends; returns a row of faults.parquet.

    Args:
        run: has just been started.
        config: when to kill.
        dice: chooses the moment and the victims.
        kill: whether to kill the run at all.

    Raises UserError if the run fails without being killed.
    """
    victims = [dice.randrange(config.ranks)] if dice.random() < 0.5 else list(range(config.ranks))
    # One in ten kills comes while the run starts.
    awaited = "validation rows" if dice.random() < 0.1 else "step "
    if kill:
        run.wait_for(awaited)
        deadline = time.perf_counter() + dice.uniform(0, config.seconds)
        while time.perf_counter() < deadline and any(process.poll() is None for process in run.processes):
            time.sleep(0.005)
        alive = any(process.poll() is None for process in run.processes)
        if alive:
            run.send(signal.SIGKILL, *victims)
            for process in run.processes:
                process.kill()  # A launcher does this when one of its ranks has died.
    statuses, output = run.end(24 * 3600)
    lines = output.splitlines()
    ended = not any(statuses)
    if not ended and (not kill or ("Traceback" in output and "error" in lines[-1])):
        raise UserError(f"the run failed without being killed:\n{output}")
    return {
        "victims": victims if kill and not ended else [],
        "from_step": next((int(match[1]) for match in map(_RESUMED.match, lines) if match), 0),
        "moment": moment_of(lines),
        "ended": ended,
    }


def moment_of(lines: Sequence[str]) -> str:
    """What the run was doing after it printed the last of `lines`."""
    steps = [line for line in lines if line.startswith("step ")]
    if not steps:
        return "starting"
    paused, written = (
        next((i for i, line in reversed(list(enumerate(steps))) if word in line), -1)
        for word in (" paused ", "written in")
    )
    return "writing a checkpoint" if paused > written else "training or evaluating"


def write(folder: Path, lives: Sequence[dict[str, Any]], *, seconds_alone: float, seconds_killed: float) -> None:
    """Writes faults.md and faults.parquet.

    Args:
        folder: holds the run folders `killed` and `whole`.
        lives: rows of faults.parquet.
        seconds_alone: time of the run left alone.
        seconds_killed: time of all lives of the killed run.
    """
    faults = sum(not life["ended"] for life in lives)
    moments = Counter(life["moment"] for life in lives if not life["ended"])
    differing = differences(folder / "killed", folder / "whole")
    write_table(folder / "faults.parquet", pa.Table.from_pylist([dict(life) for life in lives]))
    steps = json.loads((folder / "whole/metrics.jsonl").read_text().splitlines()[-1])["step"]
    rows = [
        ("steps of the run", f"{steps:,}"),
        ("kills of one rank", sum(len(life["victims"]) == 1 for life in lives)),
        ("kills of all ranks", sum(len(life["victims"]) > 1 for life in lives)),
        *((f"kills while {moment}", n) for moment, n in sorted(moments.items())),
        ("faults survived", faults),
        ("tensors and numbers that differ from the run left alone", len(differing)),
        ("rows lost", "0" if not differing else "unknown"),
        ("rows repeated", "0" if not differing else "unknown"),
        ("seconds of the run left alone", f"{seconds_alone:.0f}"),
        ("seconds of the killed run", f"{seconds_killed:.0f}"),
        ("seconds lost per fault", f"{(seconds_killed - seconds_alone) / max(faults, 1):.1f}"),
    ]
    note = (
        "A missing, additional or misplaced row would change tables and states of their optimizers: no row is lost or "
        "repeated, as none of them differs by a bit. The seconds lost per fault are for starting the processes and for "
        "repeating the steps since the last checkpoint."
    )
    text = ["# Faults", "", *(f"- {name}: {value}" for name, value in describe_run("faults.py").items()), ""]
    text += [tabulate(rows, tablefmt="github"), "", note, *(f"- differs: {name}" for name in differing[:50]), ""]
    write_whole(folder / "faults.md", "\n".join(text))
    print(tabulate(rows))
    print(f"report: {folder / 'faults.md'}")
