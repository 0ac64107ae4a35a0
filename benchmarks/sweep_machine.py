"""What a result needs to be read later: the machine, the versions, the command, the date and the revision."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stem_torchrec.process import Process

_PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "stem_torchrec")


def describe_launch(process: Process) -> dict[str, Any]:
    """The machine and how this was started, by what a reader calls it."""
    return {
        "command": shlex.join(["benchmarks/sharding.py", *sys.argv[1:]]),
        "ranks": f"{process.world_size // process.local_world_size} x {process.local_world_size} (hosts x ranks)",
        **describe_machine(),
    }


def describe_run(script: str, **more: str) -> dict[str, str]:
    """The command line of a script of this folder, the machine, `more`, and the revision."""
    command = shlex.join([f"benchmarks/{script}", *sys.argv[1:]])
    return {"command": command, **describe_machine(), **more, "revision": git_revision()}


def describe_machine() -> dict[str, str]:
    """The machine, versions, time and threads, by what a reader calls them."""
    return {
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {_memory_gib():.0f} GiB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "versions": f"Python {platform.python_version()}, {', '.join(_versions())}",
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "threads": f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} "
        f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', '')}",
    }


def git_revision() -> str:
    """The revision of the code, with `-dirty` where it is changed; empty outside of a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _versions() -> list[str]:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
