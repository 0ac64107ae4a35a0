"""One run of train.py, and what its output and its deltas tell."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stem_torchrec.deltas.manifest import DeltaManifest, complete_numbers, delta_path, read_delta
from stem_torchrec.runtime.errors import UserError

from common.load import CpuTime, busy_with_others
from recovery.train_runs import TrainRun


@dataclass(frozen=True)
class ShippedRun:
    """A run that has ended."""

    seconds: float
    """Of the steps after the warm-up."""
    step_ms: float
    pauses: dict[int, float]
    """Seconds that it stood still for a delta, by step."""
    written: dict[int, float]
    """Seconds that writing a delta took meanwhile, by number."""
    deltas: list[DeltaManifest]
    others: float
    """Cores that other processes kept busy meanwhile."""


def shipped_run(folder: Path, line: Sequence[str], *, ranks: int, steps: int, warm: int) -> ShippedRun:
    """Runs train.py in a new folder; its deltas are left in `folder`/deltas.

    Args:
        folder: of the run.
        line: options.
        ranks: number of ranks.
        steps: steps of the run, which logs every tenth.
        warm: steps of the warm-up, a multiple of ten.

    Raises UserError if the run fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    before = CpuTime.now()
    train = TrainRun(folder, [*line, "--train.max-steps", str(steps)], ranks=ranks)
    statuses, output = train.end(24 * 3600)
    if any(statuses):
        raise UserError(f"the run failed:\n{output}")
    after = CpuTime.now()
    times: dict[int, float] = {}
    pauses: dict[int, float] = {}
    written: dict[int, float] = {}
    for moment, text in zip(train.times, train.lines, strict=True):
        if step := re.match(r"step (\d+)  \d+ ms", text):
            times.setdefault(int(step[1]), moment)
        if pause := re.match(r"step (\d+)  paused ([\d.]+) s for a delta", text):
            pauses[int(pause[1])] = float(pause[2])
        if delta := re.match(r"step \d+  delta (\d+) written in ([\d.]+) s", text):
            written[int(delta[1])] = float(delta[2])
    seconds, numbers = times[steps] - times[warm], complete_numbers(folder / "deltas")
    return ShippedRun(
        seconds,
        1000 * (seconds - sum(pause for step, pause in pauses.items() if step > warm)) / (steps - warm),
        pauses,
        written,
        [read_delta(delta_path(folder / "deltas", number)).manifest for number in numbers],
        busy_with_others(after.at - before.at, after.busy - before.busy, after.own - before.own),
    )


def megabytes(manifest: DeltaManifest) -> float:
    """MB of all files of a delta."""
    return sum(file.size for file in manifest.files.values()) / 1e6


def share_of_rows(manifest: DeltaManifest, group: str) -> float:
    """The share of the rows of a group's tables that a delta has."""
    prefix = f"{group}/"
    rows = sum(piece.rows for piece in manifest.pieces if piece.table.startswith(prefix) and piece.column == 0)
    return rows / sum(table.rows for table in manifest.tables if table.name.startswith(prefix))
