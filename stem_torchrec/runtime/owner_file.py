"""Which process owns a folder: a small file in it, and whether the process that wrote it still runs."""

import json
import os
import socket
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.file_systems import g_pathmgr
from stem_torchrec.runtime.launch_environment import slurm_step
from stem_torchrec.runtime.whole_file import naming_file

OWNER_FILE = ".owner.json"
RENEWED_EVERY = 60.0
"""Seconds between two renewals of a lease."""
LEASE_ENDS_AFTER = 300.0
"""Seconds without a renewal after which an owner on another machine counts as ended."""


@dataclass(frozen=True)
class Owner:
    """A process that owns a folder; times are in UTC, as `2026-11-26T17:15:17+00:00`."""

    host: str
    machine: str
    """This start of the machine and, for containers, their processes: what a process id belongs to."""
    pid: int
    started: str
    """When the process started, by the clock of its machine; ids are used again."""
    launch: str
    """The launch that the rank belongs to; empty without a launcher."""
    token: str
    """Different each time that a folder is taken."""
    since: str
    renewed: str

    def __str__(self) -> str:
        """`process 4711 on gpu-3 since 2026-11-26 17:15:17 UTC, last renewed 12 s ago`."""
        since = self.since.replace("T", " ").replace("+00:00", " UTC")
        return f"process {self.pid} on {self.host} since {since}, last renewed {self.age:.0f} s ago"

    @property
    def age(self) -> float:
        """Seconds since the last renewal; clocks of machines may differ, so it may be negative."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.renewed)).total_seconds()

    @property
    def is_of_this_machine(self) -> bool:
        """Whether the process id means a process that this one sees."""
        return (self.host, self.machine) == (socket.gethostname(), _machine())

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended: known on this machine, else assumed of one without renewals.

        A rank of another machine that the same launcher had started has ended too, as launchers end all ranks before
        they restart them.
        """
        if self.is_of_this_machine:
            return self.pid == os.getpid() or started_at(self.pid) != self.started
        return self.age > LEASE_ENDS_AFTER or (self.launch != "" and self.launch == launch_id())


def this_process(token: str) -> Owner:
    """This process as an owner from now on."""
    now = time_now()
    pid = os.getpid()
    return Owner(socket.gethostname(), _machine(), pid, started_at(pid) or "", launch_id(), token, now, now)


def time_now() -> str:
    """The time as an owner file has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def started_at(pid: int) -> str | None:
    """When a process of this machine started, in ticks of its clock; None for one that has ended.

    Where the system does not tell, an empty string for every process that runs.
    """
    if Path("/proc/self/stat").exists():
        try:
            # The name of the program, in parentheses, may have spaces.
            state, *values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        # A zombie has ended, though nobody has asked for its exit status yet.
        return None if state in "ZX" else values[18]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def launch_id() -> str:
    """The launch of this rank, the same after its launcher restarts the ranks; empty without a launcher."""
    name = os.environ.get("TORCHELASTIC_RUN_ID") or slurm_step(os.environ)
    # torchrun's name for a launch that was given none; its process stays the same.
    return f"process {os.getppid()} {started_at(os.getppid())} of {_machine()}" if name == "none" else name


def _machine() -> str:
    boot, processes = Path("/proc/sys/kernel/random/boot_id"), "/proc/self/ns/pid"
    return f"{boot.read_text().strip()} {os.readlink(processes)}" if boot.exists() else ""


def read_owner(folder: str) -> Owner | None:
    """The owner that `folder` names, or None if it names none.

    Raises UserError for a file that is damaged, OSError for a store that does not answer.
    """
    path = f"{folder}/{OWNER_FILE}"
    if not g_pathmgr.exists(path):
        return None
    try:
        with g_pathmgr.open(path, "r") as file:
            values = json.loads(file.read())
        owner = Owner(**values)
        if not all(type(getattr(owner, field.name)) is field.type for field in fields(Owner)):
            raise ValueError("a field has another type")
        datetime.fromisoformat(owner.renewed)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} names no owner ({reason_of(error)}); delete it if no process writes to {folder}."
        ) from error
    return owner


def write_owner(folder: str, owner: Owner) -> None:
    """Writes the owner at once: a reader gets the earlier file or this one. Raises OSError."""
    path, text = f"{folder}/{OWNER_FILE}", json.dumps(asdict(owner), indent=1) + "\n"
    if "://" in path:
        # A store shows an object when it is complete.
        with g_pathmgr.open(path, "w") as file:
            file.write(text)
    else:
        new = Path(f"{path}.{owner.token}")
        with naming_file(path):
            try:
                new.write_text(text)
                new.replace(path)
            finally:
                new.unlink(missing_ok=True)


def remove_owner(folder: str) -> None:
    """Removes the owner file. Raises OSError."""
    g_pathmgr.rm(f"{folder}/{OWNER_FILE}")
