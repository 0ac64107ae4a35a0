"""One run whose blocks of steps take turns in shipping deltas: what each block took, over all ranks."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from stem_torchrec.deltas.manifest import complete_numbers, delta_path, read_delta
from stem_torchrec.runtime.errors import UserError

from common.load import busy_with_others
from common.processes import module_command
from recovery.train_runs import TrainRun
from shipping.shipped import megabytes


def measure_blocks(
    folder: Path, line: Sequence[str], *, ranks: int, seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """A row for each block: first, then alone and shipping in turns.

    Args:
        folder: of the run, which is new.
        line: options of train.py.
        ranks: number of ranks.
        seconds: of a block.
        rounds: how many blocks ship changed rows; each is between two that ship nothing.

    Raises UserError if the run fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    result = folder.with_name("blocks.json")
    # No delta is due by its own clock: the blocks ask for them.
    own = ["--delta.minutes", "1e6", "--train.max-steps", str(10**9)]
    turns = ["--result", str(result), "--block-seconds", str(seconds), "--rounds", str(rounds)]
    run = TrainRun(folder, [*line, *own, *turns], ranks=ranks, script=module_command("shipping.worker")[1:])
    statuses, output = run.end(24 * 3600)
    if any(statuses):
        raise UserError(f"the run failed:\n{output}")
    of_ranks = json.loads(result.read_text())
    result.unlink()
    sizes = [
        megabytes(read_delta(delta_path(folder / "deltas", number)).manifest)
        for number in complete_numbers(folder / "deltas")
    ]
    rows = []
    for blocks in zip(*of_ranks, strict=True):
        rows.append(row := _row(blocks))
        row["mb"] = None if row["kind"] == "alone" else sizes.pop(0)
        print(row, flush=True)
    return rows


def _row(of_ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The block of all ranks, which wait for each other: times are those of rank 0, CPU seconds of all."""
    first = of_ranks[0]
    cpu = sum(block["cpu"] for block in of_ranks)
    return {
        "kind": first["kind"],
        "steps": first["steps"],
        "seconds": first["seconds"],
        "cpu": cpu,
        "others": busy_with_others(first["seconds"], first["busy"], cpu),
        "step_ms": median(first["step_ms"]),
        "recording_ms": 1000 * max(block["recording"] for block in of_ranks) / first["steps"],
        "paused": first["paused"],
    }
