"""Runs one case in fresh processes, one beside each rank of the launcher, and says how it ended.

    torchrun --- rank 0, watches --- child rank 0 \\
             \\- rank 1, watches --- child rank 1  > a process group of their own, over a store of this case

A child that fails, is killed or hangs ends all children of the case, and nothing else. Every rank of the launcher
calls `run_case` at the same time.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed as dist

from stem_torchrec.config import TrainConfig
from stem_torchrec.plain import to_plain
from stem_torchrec.process import Process, from_first_rank

from sweep_cases import Case
from table_list import TableSpec

_POLL_SECONDS = 0.1
_LAST_WORDS_SECONDS = 3.0
"""For which the others may still write why they fail, once a child has failed."""
_FAILED = "failed"


@dataclass(frozen=True)
class Job:
    """What a child is told on its standard input, as JSON on one line; the input closes when its parent is gone."""

    config: TrainConfig
    case: Case
    tables: tuple[TableSpec, ...]
    """The table list; empty for a log."""
    warmup: int
    steps: int
    timeout: float
    outcome: str
    """File for `{"measurement": ...}`, or `{"status": ..., "reason": ...}` where it failed."""


@dataclass(frozen=True)
class Ending:
    """How the child of one rank ended."""

    rank: int
    status: str
    """ok, refused, failed, killed, timeout, or stopped for another rank's failure."""
    reason: str
    at: float
    """Seconds from the start of the case."""
    log: str
    """The end of what it printed, where the status is not ok."""
    measurement: dict[str, Any] | None = None
    """From rank 0."""


@contextmanager
def no_gpu() -> Iterator[None]:
    """Hides the GPUs, which are the children's: a supervisor would hold memory of one."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def run_case(job: Job, process: Process) -> list[Ending]:
    """Runs `job` in a child of every rank; returns how each ended, on all ranks."""
    start = time.monotonic()
    store, address = _open_store(process)
    with TemporaryDirectory(prefix="sweep_") as folder:
        outcome, log = Path(folder, "outcome.json"), Path(folder, "log")
        environment = os.environ | {
            "MASTER_ADDR": address,
            "MASTER_PORT": str(store.port),
            # Makes every child a client of the store that rank 0 holds here, so that no port is guessed.
            "TORCHELASTIC_USE_AGENT_STORE": str(True),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        }
        with log.open("w") as output:
            child = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("sweep_worker.py"))],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # So that killing it kills what it starts, too.
            )
        try:
            _tell(child, Job(**{**vars(job), "outcome": str(outcome)}))
            status = _watch(child, store, start + job.timeout)
        finally:
            _kill(child)
        ending = _describe(process.rank, status, child.returncode, outcome, log, job, time.monotonic() - start)
    endings: list[Any] = [None] * process.world_size
    # The store ends with rank 0's reference to it, so after all have stopped watching.
    dist.all_gather_object(endings, ending)
    return endings


def judge(endings: Sequence[Ending]) -> tuple[str, str]:
    """Status and reason of a case: those of the rank that failed of itself rather than for another's failure."""
    bad = [ending for ending in endings if ending.status != "ok"]
    if not bad:
        return "ok", ""
    order = ("refused", "killed", "failed", "timeout", "stopped")
    first = min(bad, key=lambda ending: (order.index(ending.status), ending.at))
    where = "" if first.status in ("refused", "timeout") or len(endings) == 1 else f"rank {first.rank}: "
    return first.status, where + first.reason


def _open_store(process: Process) -> tuple[dist.TCPStore, str]:
    """A store that rank 0 holds, on a port that the system chose, and rank 0's address."""
    local = process.world_size == process.local_world_size
    here = "127.0.0.1" if local else _own_address(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if process.is_first:
        store = dist.TCPStore(here, 0, is_master=True, wait_for_workers=False)
    address, port = from_first_rank(lambda: (here, store.port))
    return store if process.is_first else dist.TCPStore(address, port, is_master=False), address


def _own_address(master: str, port: int) -> str:
    """The address by which other hosts reach this one: that on its way to the master, whose own name they know."""
    with socket.socket(socket.getaddrinfo(master, port)[0][0], socket.SOCK_DGRAM) as probe:
        probe.connect((master, port))
        address = str(probe.getsockname()[0])
    return master if address.startswith("127.") or address == "::1" else address


def _tell(child: subprocess.Popen, job: Job) -> None:
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # It has died at once; watching it tells.
        child.stdin.write(json.dumps(to_plain(job)).encode() + b"\n")
        child.stdin.flush()


def _watch(child: subprocess.Popen, store: dist.TCPStore, deadline: float) -> str:
    """Waits until the child ends, too much time has passed, or another rank's child has failed."""
    give_up = deadline
    while child.poll() is None:
        if give_up == deadline and store.check([_FAILED]):
            give_up = min(deadline, time.monotonic() + _LAST_WORDS_SECONDS)
        if time.monotonic() > give_up:
            if give_up < deadline:
                return "stopped"
            store.set(_FAILED, "")
            # faulthandler shows where it hangs.
            child.send_signal(signal.SIGUSR1)
            time.sleep(1)
            return "timeout"
        time.sleep(_POLL_SECONDS)
    if child.returncode:
        store.set(_FAILED, "")
    return "ended"


def _kill(child: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):  # It has ended, with all that it started.
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert child.stdin is not None
    child.stdin.close()


def _describe(rank: int, watched: str, code: int, outcome: Path, log: Path, job: Job, seconds: float) -> Ending:
    said: dict[str, Any] = json.loads(outcome.read_text()) if outcome.exists() else {}
    printed = log.read_text(errors="replace")
    if watched == "ended" and code == 0:
        return Ending(rank, "ok", "", seconds, "", said.get("measurement"))
    if watched == "timeout":
        status, reason = "timeout", f"no end after {job.timeout:g} s (--timeout)"
    elif "status" in said:
        status, reason = said["status"], said["reason"]
    elif watched == "stopped":
        status, reason = "stopped", "another rank failed"
    elif code < 0:
        name = signal.Signals(-code).name
        hint = ", as the system does where memory runs out" if -code == signal.SIGKILL else ""
        status, reason = "killed", f"killed by {name}{hint}"
    else:
        lines = printed.strip().splitlines() or ["it printed nothing"]
        status, reason = "failed", f"exit status {code}: {lines[-1]}"
    return Ending(rank, status, reason, seconds, printed[-20_000:])
