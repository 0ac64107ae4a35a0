"""What a reader of a result needs to know later: the machine, the versions, the command, the date and the revision."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stem_torchrec.runtime.memory import host_memory

_PACKAGES = ("torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "stem_torchrec")
_STARTED = datetime.now().astimezone()
"""When this process did; some reports are written hours later."""


def describe_run(script: str, **more: str) -> dict[str, str]:
    """The head of a report: command, machine, `more` and revision, by the names that the report shows.

    Args:
        script: file name of the front script.
        more: further lines, before the revision.
    """
    return {"command": command_line(script), **describe_machine(), **more, "revision": git_revision()}


def command_line(script: str) -> str:
    """How this process was started, with the front script `script` and the arguments of this process."""
    return shlex.join([f"benchmarks/{script}", *sys.argv[1:]])


def describe_machine() -> dict[str, str]:
    """The machine, versions, time and threads, by the names that the report shows."""
    return {
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory_gib():.0f} GiB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "versions": f"Python {platform.python_version()}, {', '.join(_versions())}",
        "started": _STARTED.isoformat(timespec="seconds"),
        "threads": f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} "
        f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', '')}",
    }


def count_hosts(hosts: int) -> str:
    """`1 host`, `2 hosts`."""
    return f"{hosts} host{'s' * (hosts != 1)}"


def format_hosts(hosts: int, ranks_per_host: int) -> str:
    """`2 x 8 (hosts x ranks)`."""
    return f"{hosts} x {ranks_per_host} (hosts x ranks)"


def git_revision() -> str:
    """The revision of the code, with `-dirty` if it has changes; empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()


def memory_gib() -> float:
    """Memory of this machine or container, in GiB."""
    return host_memory() / 2**30


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> list[str]:
    versions = []
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return versions
