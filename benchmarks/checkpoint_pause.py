"""What checkpoints cost a run: the same steps with one a minute and with none, in turns.

python benchmarks/checkpoint_pause.py --out runs/checkpoint_pause
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tabulate import tabulate

from stem_torchrec.cli import parse_known_arguments, run_main
from stem_torchrec.errors import UserError

from fault_runs import TrainRun
from sweep_machine import describe_run

LINE = [
    *("--recipe", "synthetic", "--train.epochs", "1000", "--train.eval-every", "1000000", "--train.log-every", "10"),
    *("--data.synthetic.users", "5600000", "--data.synthetic.items", "5600000", "--checkpoint.keep", "1"),
]
"""Tables of 2.0 GiB: three for each of 11.2 million ids, of 16 numbers."""


@dataclass(frozen=True)
class PauseConfig:
    """What to measure; further options are those of train.py, behind the ones that this starts from."""

    out: str = ""
    """Folder for the runs, checkpoint_pause.md and checkpoint_pause.parquet."""
    ranks: int = 2
    """Of the runs."""
    steps: int = 6000
    """Steps of a run, of which the first tenth warms up."""
    minutes: float = 1.0
    """Between two checkpoints."""
    rounds: int = 3
    """How often both sides run, in turns."""


def main(config: PauseConfig, options: Sequence[str]) -> None:
    """Measures both sides and writes what they took."""
    folder = Path(config.out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for turn in range(config.rounds):
        for minutes in (config.minutes, None):
            line = [*LINE, "--train.max-steps", str(config.steps), "--checkpoint.minutes", str(minutes), *options]
            found.append({"round": turn, "minutes": minutes, **measure(folder / "run", line, config)})
            print(found[-1], flush=True)
    pq.write_table(pa.Table.from_pylist(found), folder / "checkpoint_pause.parquet")
    write(folder, config, found)


def measure(run: Path, line: Sequence[str], config: PauseConfig) -> dict[str, Any]:
    """Seconds of the steps behind the warm-up, and of the pauses in them."""
    shutil.rmtree(run, ignore_errors=True)
    process = TrainRun(run, line, ranks=config.ranks)
    statuses, said = process.end(24 * 3600)
    if any(statuses):
        raise UserError(f"the run failed:\n{said}")
    times: dict[int, float] = {}
    pauses = []
    warm = config.steps // 10 // 10 * 10
    for moment, text in zip(process.times, process.said, strict=True):
        step = re.match(r"step (\d+)  \d+ ms", text)
        if step:
            times.setdefault(int(step[1]), moment)
        pause = re.match(r"step (\d+)  paused ([\d.]+) s", text)
        if pause and int(pause[1]) >= warm:
            pauses.append(float(pause[2]))
    return {"seconds": times[config.steps] - times[warm], "paused": sum(pauses), "checkpoints": len(pauses)}


def write(folder: Path, config: PauseConfig, found: Sequence[dict[str, Any]]) -> None:
    """Writes checkpoint_pause.md."""
    rows, shares = [], []
    for turn in range(config.rounds):
        saved, alone = (row for row in found if row["round"] == turn)
        shares.append(saved["seconds"] / alone["seconds"] - 1)
        rows.append(
            [
                f"{saved['seconds']:.1f}", f"{alone['seconds']:.1f}", saved["checkpoints"], f"{saved['paused']:.2f}",
                f"{saved['paused'] / saved['seconds']:.2%}", f"{shares[-1]:+.2%}",
            ]
        )  # fmt: skip
    names = ["seconds with", "seconds without", "checkpoints", "paused", "share of pauses", "more time in all"]
    head = describe_run("checkpoint_pause.py")
    text = ["# What checkpoints cost", "", *(f"- {name}: {value}" for name, value in head.items()), ""]
    text += [tabulate(rows, names, tablefmt="github", disable_numparse=True), ""]
    text += [
        f"Median: {median(shares):+.2%} of time in all, with a checkpoint every {config.minutes * 60:g} seconds.",
        "",
    ]
    (folder / "checkpoint_pause.md").write_text("\n".join(text))
    print(f"report: {folder / 'checkpoint_pause.md'}")


def start(args: Sequence[str] | None = None) -> None:
    """Reads the command line and measures."""
    config, rest = parse_known_arguments(PauseConfig(), args, description=__doc__ or "")
    if not config.out:
        raise UserError("say where the results go: --out DIR.")
    if config.ranks < 1 or config.rounds < 1 or config.steps < 100 or config.minutes <= 0:
        raise UserError("--ranks and --rounds must be at least 1, --steps at least 100, and --minutes above 0.")
    main(config, rest)


if __name__ == "__main__":
    run_main(start)
