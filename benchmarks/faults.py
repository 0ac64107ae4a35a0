"""A soak: one run killed again and again, started again each time, against the same run left alone.

python benchmarks/faults.py --out runs/faults --kills 100
"""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tabulate import tabulate

from stem_torchrec.cli import parse_known_arguments, run_main
from stem_torchrec.errors import UserError

from fault_runs import TrainRun, differences
from sweep_machine import describe_run

LINE = [
    *(
        "--recipe",
        "tiny",
        "--model.dropout",
        "0.1",
        "--data.batch-size",
        "128",
        "--data.synthetic.train-rows",
        "100000",
    ),
    *("--train.epochs", "60", "--train.eval-every", "200", "--checkpoint.steps", "20", "--checkpoint.keep", "2"),
]


@dataclass(frozen=True)
class FaultsConfig:
    """What to survive; further options are those of train.py, behind the ones that this starts from."""

    out: str = ""
    """Folder for both runs, faults.md and faults.parquet."""
    kills: int = 100
    """How often to kill, each time one rank, or all."""
    ranks: int = 2
    """Of the run."""
    seconds: float = 6.0
    """A kill comes at a random moment within as many seconds of a life's first step, or of its start."""
    seed: int = 0
    """Of moments and victims."""


def main(config: FaultsConfig, options: Sequence[str]) -> None:
    """Runs both and writes what came of it."""
    folder = Path(config.out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    line = [*LINE, *options]
    begin = time.perf_counter()
    statuses, said = TrainRun(folder / "whole", line, ranks=config.ranks).end(24 * 3600)
    if any(statuses):
        raise UserError(f"the run that is left alone failed:\n{said}")
    alone = time.perf_counter() - begin
    begin, dice = time.perf_counter(), random.Random(config.seed)
    lives: list[dict[str, Any]] = []
    while True:
        life = live(TrainRun(folder / "killed", line, ranks=config.ranks), config, dice, kill=len(lives) < config.kills)
        lives.append(life)
        print(f"life {len(lives)}: {json.dumps(life)}", flush=True)
        if life["ended"]:
            break
    write(folder, config, lives, alone, time.perf_counter() - begin)


def live(run: TrainRun, config: FaultsConfig, dice: random.Random, *, kill: bool) -> dict[str, Any]:
    """One life of the run: killed at a random moment, or left to end."""
    victims = [dice.randrange(config.ranks)] if dice.random() < 0.5 else list(range(config.ranks))
    # Of ten kills one comes while the run starts.
    after = "validation rows" if dice.random() < 0.1 else "step "
    if kill:
        run.wait_for(after)
        deadline = time.perf_counter() + dice.uniform(0, config.seconds)
        while time.perf_counter() < deadline and any(process.poll() is None for process in run.processes):
            time.sleep(0.005)
        alive = any(process.poll() is None for process in run.processes)
        if alive:
            run.send(signal.SIGKILL, *victims)
            for process in run.processes:
                process.kill()  # As a launcher does when one of its ranks has died.
    statuses, said = run.end(24 * 3600)
    lines = said.splitlines()
    ended = not any(statuses)
    if not ended and (not kill or ("Traceback" in said and "error" in said.splitlines()[-1])):
        raise UserError(f"a life failed by itself:\n{said}")
    return {
        "victims": victims if kill and not ended else [],
        "from_step": next((int(each.split()[4]) for each in lines if each.startswith("going on after step")), 0),
        "moment": moment_of(lines),
        "ended": ended,
    }


def moment_of(lines: Sequence[str]) -> str:
    """What the run was doing when it said no more."""
    steps = [line for line in lines if line.startswith("step ")]
    if not steps:
        return "starting"
    last = [
        next((i for i, line in reversed(list(enumerate(steps))) if word in line), -1)
        for word in (" paused ", "written in")
    ]
    return "writing a checkpoint" if last[0] > last[1] else "training or evaluating"


def write(folder: Path, config: FaultsConfig, lives: Sequence[dict[str, Any]], alone: float, killed: float) -> None:
    """Writes faults.md and faults.parquet."""
    faults = sum(not life["ended"] for life in lives)
    moments = Counter(life["moment"] for life in lives if not life["ended"])
    differing = differences(folder / "killed", folder / "whole")
    pq.write_table(pa.Table.from_pylist([dict(life) for life in lives]), folder / "faults.parquet")
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
        ("seconds of the run left alone", f"{alone:.0f}"),
        ("seconds of the killed run", f"{killed:.0f}"),
        ("seconds lost per fault", f"{(killed - alone) / max(faults, 1):.1f}"),
    ]
    head = describe_run("faults.py")
    note = (
        "A row more or less, or in another place, would change tables and states of their optimizers: the numbers of "
        "rows lost and repeated rest on none of them differing by a bit. The seconds lost per fault are the start of "
        "processes and the steps made again since the last checkpoint."
    )
    text = [
        "# Faults",
        "",
        *(f"- {name}: {value}" for name, value in head.items()),
        "",
        tabulate(rows, tablefmt="github"),
    ]
    text += ["", note, *(f"- differs: {name}" for name in differing[:50]), ""]
    (folder / "faults.md").write_text("\n".join(text))
    print(tabulate(rows))
    print(f"report: {folder / 'faults.md'}")


def start(args: Sequence[str] | None = None) -> None:
    """Reads the command line and runs the soak."""
    config, rest = parse_known_arguments(FaultsConfig(), args, description=__doc__ or "")
    if not config.out:
        raise UserError("say where the results go: --out DIR.")
    if config.kills < 1 or config.ranks < 1 or config.seconds <= 0:
        raise UserError("--kills and --ranks must be at least 1, and --seconds above 0.")
    main(config, rest)


if __name__ == "__main__":
    run_main(start)
