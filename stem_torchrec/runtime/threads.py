"""How many threads a rank computes with: its share of the cores that the launcher and the container leave it."""

import json
import os
import re
import socket
from pathlib import Path

import torch
import torch.distributed as dist

from stem_torchrec.runtime.cgroups import cgroup_values

_VARIABLE = "OMP_NUM_THREADS"


def core_quota(root: Path = Path("/")) -> float:
    """Cores' worth of time that the control groups leave to the processes of this host; infinite without a limit.

    Args:
        root: where /proc and /sys are.

    Example::

        core_quota()  # 2.5 in a container that runs under `docker run --cpus 2.5`
    """
    limits = [text.split() for text in cgroup_values("cpu.max", root=root)]
    quotas = cgroup_values("cpu.cfs_quota_us", controller="cpu", root=root)
    periods = cgroup_values("cpu.cfs_period_us", controller="cpu", root=root)
    limits += [list(pair) for pair in zip(quotas, periods, strict=True)]
    # v2 writes max for no limit, v1 writes -1.
    shares = (int(quota) / int(period) for quota, period in limits if quota not in ("max", "-1"))
    return min(shares, default=float("inf"))


def share_cores(store: dist.Store, rank: int, world_size: int, *, local_world_size: int) -> None:
    """Sets the number of threads to this rank's share of its cores; all ranks call it.

    Ranks that the launcher binds to the same cores share them; srun gives each rank cores of its own. A number that
    the user has set in OMP_NUM_THREADS stays.
    """
    host, cores = socket.gethostname(), os.sched_getaffinity(0)
    store.set(f"cores/{rank}", json.dumps([host, sorted(cores)]))
    ranks = [json.loads(text) for text in store.multi_get([f"cores/{each}" for each in range(world_size)])]
    sharing = sum(each_host == host and not cores.isdisjoint(each) for each_host, each in ranks)
    set_threads(len(cores) // sharing, local_world_size=local_world_size)


def set_threads(cores: int, *, local_world_size: int) -> None:
    """Sets the number of threads unless the user has: `cores`, or this rank's share of the container's if less."""
    if re.match(r"\s*[1-9]", os.environ.get(_VARIABLE, "")) and not _is_default_of_torchrun():
        return
    torch.set_num_threads(max(1, int(min(cores, core_quota() / local_world_size))))


def _is_default_of_torchrun() -> bool:
    """Whether torchrun has set one thread per rank, which leaves cores idle, because its user set nothing."""
    if os.environ[_VARIABLE] != "1" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    try:
        # What the launcher was started with; what it has set since is not in it.
        environment = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return True
    return not any(entry.startswith(f"{_VARIABLE}=".encode()) for entry in environment.split(b"\0"))
