"""One case of the benchmark: a command on a raw file, with its time, its peak memory and what it spilled."""

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stem_torchrec.data.new_log import WORK
from stem_torchrec.runtime.errors import UserError

from common.load import CpuTime, busy_with_others
from common.processes import ROOT, module_command, module_path
from prepare.tiktok_rows import FILE, write_tiktok

Side = Literal["stem-prepare", "pandas"]

_EVERY = 0.05
"""Seconds between two looks at memory and disk."""
_STAGE = re.compile(r"^(\w+)\s.*?([\d.]+) s\b", re.MULTILINE)


@dataclass(frozen=True)
class Measured:
    """What one run took."""

    side: Side
    rows: int
    seconds: float
    cpu_seconds: float
    """Of all processors, in user and system mode."""
    others: float
    """Cores that other processes kept busy meanwhile."""
    peak_gib: float
    """The most memory of the process and its children, by the kernel."""
    spill_gib: float
    """The most that lay on the disk beside the log: kept tables and what the engine spilled."""
    stages: dict[str, float]
    """Seconds by stage."""


def raw_file(folder: Path, rows: int) -> Path:
    """The folder of a raw file of so many rows, which is written unless it is complete."""
    raw = folder / f"raw-{rows}"
    if not (raw / "complete").exists():
        raw.mkdir(parents=True, exist_ok=True)
        write_tiktok(raw / FILE, rows)
        (raw / "complete").touch()
    return raw


def measure_case(side: Side, raw: Path, rows: int, folder: Path, *, memory: float, report: bool) -> Measured:
    """Runs a side once; raises UserError if it fails.

    Args:
        side: what runs.
        raw: folder of the raw file.
        rows: of the raw file.
        folder: gets the log.
        memory: GiB that DuckDB may take.
        report: whether stem-prepare writes its report as well.
    """
    out = folder / "log"
    unfinished = out.with_name(f".{out.name}.new")
    for left in (out, unfinished):
        shutil.rmtree(left, ignore_errors=True)
    if side == "pandas":
        command = module_command("prepare.pandas_side", str(raw), str(out))
    else:
        options = ["--set", f"raw={raw}", "--out", str(out), "--memory", str(memory)]
        options += [] if report else ["--no-report"]
        command = module_command("stem_torchrec.prepare", "tiktok", *options)
    before = CpuTime.now()
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **module_path()}, stdout=subprocess.PIPE, text=True
    )
    peak = spill = 0
    try:
        while process.poll() is None:
            peak = max(peak, _peak_memory(process.pid))
            spill = max(spill, _bytes_in(unfinished / WORK))
            time.sleep(_EVERY)
    finally:
        process.kill()
    after = CpuTime.now()
    output = process.stdout.read() if process.stdout is not None else ""
    if process.returncode:
        raise UserError(f"{side} ended with status {process.returncode} on {rows:,} rows.")
    shutil.rmtree(out)
    seconds, cpu = after.at - before.at, after.own - before.own
    return Measured(
        side,
        rows,
        seconds,
        cpu,
        busy_with_others(seconds, after.busy - before.busy, cpu),
        peak / 2**30,
        spill / 2**30,
        {name: float(number) for name, number in _STAGE.findall(output)},
    )


def _peak_memory(pid: int) -> int:
    """Bytes of the most memory that a process and its children have had; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return (int(match[1]) * 1024 if match else 0) + sum(_peak_memory(int(child)) for child in children)


def _bytes_in(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(path, name)).st_blocks * 512
            except OSError:
                continue
    return total
