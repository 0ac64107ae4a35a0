"""Runs one case in fresh processes, one beside each rank of the launcher, and reports how each ended.

    torchrun --- rank 0, watches --- child rank 0 \\
             \\- rank 1, watches --- child rank 1  > a process group of their own, over a store of this case

If a child fails, is killed or hangs, all children of the case end, and nothing else does. All ranks of the launcher
call `run_case` at the same time.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed as dist

from stem_torchrec.config import TrainConfig
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.rendezvous import serve_store

from common.load import CpuTime, busy_with_others
from common.processes import module_command, module_path
from common.table_list import TableSpec
from sweep.cases import Case

Environment = Mapping[str, str]
"""Environment variables of a process."""

_POLL_SECONDS = 0.1
_LAST_WORDS_SECONDS = 3.0
"""How long the other children may still write why they fail, once one has failed."""
_FAILED = "failed"
"""Key of the store that is set once a child has failed."""


@dataclass(frozen=True)
class Job:
    """What a child gets on its standard input, as one line of JSON; the input closes when its parent is gone."""

    config: TrainConfig
    case: Case
    tables: tuple[TableSpec, ...]
    """The table list; empty for a log."""
    warmup: int
    steps: int
    by_table: bool
    """Whether each table is measured alone as well."""
    timeout: float
    outcome: str
    """File for `{"measurement": ...}`, or for `{"status": ..., "reason": ...}` if the child failed."""


@dataclass(frozen=True)
class Ending:
    """How the child of one rank ended."""

    rank: int
    status: str
    """ok, refused, failed, killed, timeout, or stopped because another rank failed."""
    reason: str
    at: float
    """Seconds from the start of the case."""
    log: str
    """The end of what the child printed; empty if the status is ok."""
    measurement: dict[str, Any] | None = None
    """Of all ranks, in the ending of rank 0; None in the others."""
    busy_seconds: float = 0.0
    """CPU seconds of all processes on this host during the case."""
    own_seconds: float = 0.0
    """CPU seconds of this rank and its child during the case."""


@contextmanager
def no_gpu() -> Iterator[Environment]:
    """Hides the GPUs from this process, which would take memory of one; yields the environment from before.

    The children need it: they measure on the GPUs that the launcher gave to this process.
    """
    before = dict(os.environ)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield before
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if "CUDA_VISIBLE_DEVICES" in before:
            os.environ["CUDA_VISIBLE_DEVICES"] = before["CUDA_VISIBLE_DEVICES"]


def run_case(job: Job, process: Process, environment: Environment) -> list[Ending]:
    """Runs `job` in a child of every rank; returns on all ranks how each child ended, by rank.

    Args:
        job: the same on all ranks.
        process: this rank of the launcher.
        environment: of the launcher, as `no_gpu` yields it.
    """
    start = CpuTime.now()
    store, address = _open_store(process)
    with TemporaryDirectory(prefix="sweep_") as folder:
        outcome, log = Path(folder, "outcome.json"), Path(folder, "log")
        with log.open("w") as output:
            child = subprocess.Popen(
                module_command("sweep.worker"),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment_of_child(environment, address, store.port),
                start_new_session=True,  # Killing it then also kills what it starts.
            )
        try:
            _tell(child, Job(**{**vars(job), "outcome": str(outcome)}))
            status = _watch(child, store, start.at + job.timeout)
        finally:
            _kill(child)
        end = CpuTime.now()
        ending = _describe(process.rank, status, child.returncode, outcome, log, job, end.at - start.at)
        ending = replace(ending, busy_seconds=end.busy - start.busy, own_seconds=end.own - start.own)
    endings: list[Any] = [None] * process.world_size
    # Rank 0 still holds the store here; it is closed after all ranks have stopped watching.
    dist.all_gather_object(endings, ending)
    return endings


def environment_of_child(environment: Environment, address: str, port: int) -> dict[str, str]:
    """The environment of a child: that of the launcher, GPUs included, with the store of this case to meet in."""
    return {
        **environment,
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        # Makes every child a client of the store that rank 0 opened, so that no port is guessed.
        "TORCHELASTIC_USE_AGENT_STORE": str(True),
        **module_path(),
    }


def cores_of_others(endings: Sequence[Ending], ranks_per_host: int) -> float:
    """Cores that processes outside of the sweep kept busy during a case, on the host where they did so the most."""
    hosts = [endings[first : first + ranks_per_host] for first in range(0, len(endings), ranks_per_host)]
    return max(
        busy_with_others(
            max(each.at for each in host),
            max(each.busy_seconds for each in host),
            sum(each.own_seconds for each in host),
        )
        for host in hosts
    )


def judge(endings: Sequence[Ending]) -> tuple[str, str]:
    """Status and reason of a case: those of the rank that failed first by itself, not because another one failed."""
    bad = [ending for ending in endings if ending.status != "ok"]
    if not bad:
        return "ok", ""
    order = ("refused", "killed", "failed", "timeout", "stopped")
    first = min(bad, key=lambda ending: (order.index(ending.status), ending.at))
    prefix = "" if first.status in ("refused", "timeout") or len(endings) == 1 else f"rank {first.rank}: "
    return first.status, prefix + first.reason


def _open_store(process: Process) -> tuple[dist.TCPStore, str]:
    """A store that rank 0 opens on a port that the system chooses, and the address of rank 0."""
    local = process.world_size == process.local_world_size
    own = "127.0.0.1" if local else _own_address(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if process.is_first:
        store = serve_store(own)
    address, port = from_first_rank(lambda: (own, store.port))
    return store if process.is_first else dist.TCPStore(address, port, is_master=False), address


def _own_address(master: str, port: int) -> str:
    """The address by which other hosts reach this one: the one it uses to reach the master, or the master's name."""
    with socket.socket(socket.getaddrinfo(master, port)[0][0], socket.SOCK_DGRAM) as probe:
        probe.connect((master, port))
        address = str(probe.getsockname()[0])
    return master if address.startswith("127.") or address == "::1" else address


def _tell(child: subprocess.Popen, job: Job) -> None:
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # The child has died at once; _watch notices.
        child.stdin.write(json.dumps(to_dict(job)).encode() + b"\n")
        child.stdin.flush()


def _watch(child: subprocess.Popen, store: dist.TCPStore, deadline: float) -> str:
    """Waits until the child ends, its time is up, or another rank's child has failed; returns which."""
    give_up = deadline
    while child.poll() is None:
        if give_up == deadline and store.check([_FAILED]):
            give_up = min(deadline, time.monotonic() + _LAST_WORDS_SECONDS)
        if time.monotonic() > give_up:
            if give_up < deadline:
                return "stopped"
            store.set(_FAILED, "")
            # faulthandler of the child prints where it hangs.
            child.send_signal(signal.SIGUSR1)
            time.sleep(1)
            return "timeout"
        time.sleep(_POLL_SECONDS)
    if child.returncode:
        store.set(_FAILED, "")
    return "ended"


def _kill(child: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):  # The child has ended, with all that it started.
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert child.stdin is not None
    child.stdin.close()


def _describe(rank: int, watched: str, code: int, outcome: Path, log: Path, job: Job, seconds: float) -> Ending:
    answer: dict[str, Any] = json.loads(outcome.read_text()) if outcome.exists() else {}
    printed = log.read_text(errors="replace")
    if watched == "ended" and code == 0:
        return Ending(rank, "ok", "", seconds, "", answer.get("measurement"))
    if watched == "timeout":
        status, reason = "timeout", f"did not end within {job.timeout:g} s (--timeout)"
    elif "status" in answer:
        status, reason = answer["status"], answer["reason"]
    elif watched == "stopped":
        status, reason = "stopped", "another rank failed"
    elif code < 0:
        name = signal.Signals(-code).name
        hint = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        status, reason = "killed", f"killed by {name}{hint}"
    else:
        lines = printed.strip().splitlines() or ["it printed nothing"]
        status, reason = "failed", f"exit status {code}: {lines[-1]}"
    return Ending(rank, status, reason, seconds, printed[-20_000:])
