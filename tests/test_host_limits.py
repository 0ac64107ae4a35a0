"""The memory and the cores that a container or a job leaves to this host's ranks."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from stem_torchrec.runtime import threads
from stem_torchrec.runtime.memory import host_memory
from stem_torchrec.runtime.process import Process
from stem_torchrec.runtime.threads import set_threads, share_cores
from stem_torchrec.sharding import topology
from stem_torchrec.sharding.topology import topology_here

from distributed import run_ranks

GIB = 2**30


def host(root: Path, membership: str, **files: str) -> Path:
    """A folder with the /proc and /sys of a host; `files` gives the contents of control group files by path."""
    for path, text in {"proc/self/cgroup": membership, **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
    return root


@pytest.mark.quick
@pytest.mark.parametrize(
    ("membership", "path", "limit"),
    [
        pytest.param("0::/", "memory.max", "1073741824", id="container_v2"),
        pytest.param("0::/slurm/job_7/step_0", "slurm/job_7/memory.max", "1073741824", id="job_v2"),
        pytest.param("4:memory:/docker/1f", "memory/memory.limit_in_bytes", "1073741824", id="container_v1"),
        pytest.param("9:cpu,memory:/job", "memory/job/memory.limit_in_bytes", "1073741824", id="job_v1"),
    ],
)
def test_memory_is_what_the_control_groups_leave(tmp_path: Path, membership: str, path: str, limit: str) -> None:
    assert host_memory(host(tmp_path, membership, **{f"sys/fs/cgroup/{path}": limit})) == GIB


@pytest.mark.parametrize(
    ("membership", "path", "limit"),
    [
        pytest.param("0::/", "memory.max", "max", id="v2"),
        pytest.param("4:memory:/", "memory/memory.limit_in_bytes", "9223372036854771712", id="v1"),
        pytest.param("1:name=systemd:/", "memory/memory.limit_in_bytes", "1073741824", id="not_the_memory's_group"),
    ],
)
def test_memory_without_a_limit_is_the_host_s(tmp_path: Path, membership: str, path: str, limit: str) -> None:
    without = host_memory(tmp_path / "no_control_groups")
    assert without > GIB
    assert host_memory(host(tmp_path, membership, **{f"sys/fs/cgroup/{path}": limit})) == without


def test_a_rank_has_its_share_of_the_memory_that_the_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "host_memory", lambda: 10 * GIB)
    devices = topology_here(Process(5, 8, 4, torch.device("cpu"))).devices
    assert [device.storage.ddr for device in devices] == [10 * GIB // 4] * 8


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process computes with one thread, and no variable tells how many it should have."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quota", "ranks", "expected"), [(float("inf"), 1, 6), (2.5, 1, 2), (9.0, 2, 4), (0.5, 1, 1), (3.0, 4, 1)]
)
@pytest.mark.usefixtures("one_thread")
def test_a_rank_computes_with_its_share_of_the_container_s_cores(
    monkeypatch: pytest.MonkeyPatch, quota: float, ranks: int, expected: int
) -> None:
    monkeypatch.setattr(threads, "core_quota", lambda: quota)
    set_threads(6, local_world_size=ranks)
    assert torch.get_num_threads() == expected


def threads_by_quota(folder: Path, quotas: list[float]) -> list[int]:
    """The number of threads of this rank on a host of 8 cores, by how many of them its container may use."""
    numbers = []
    for quota in quotas:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("OMP_NUM_THREADS", raising=False)
            patch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
            patch.setattr(threads, "core_quota", lambda quota=quota: quota)
            share_cores(dist.FileStore(str(folder / str(quota)), 2), dist.get_rank(), 2, local_world_size=2)
        numbers.append(torch.get_num_threads())
    return numbers


def test_ranks_on_the_same_cores_share_them_within_the_container_s_limit(tmp_path: Path) -> None:
    assert run_ranks(2, threads_by_quota, tmp_path, [float("inf"), 5.0, 1.0]) == [[4, 2, 1]] * 2


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        pytest.param({"OMP_NUM_THREADS": "1"}, 1, id="the_user"),
        pytest.param({"XOMP_NUM_THREADS": "1", "PATH": "OMP_NUM_THREADS=1"}, 3, id="torchrun"),
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_one_thread_stays_if_the_user_has_set_it_and_not_torchrun(
    monkeypatch: pytest.MonkeyPatch, launcher: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(threads, "core_quota", lambda: float("inf"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with subprocess.Popen(["/bin/sleep", "60"], env=launcher) as parent:
        # For a moment after the start a process has no environment yet.
        while not Path(f"/proc/{parent.pid}/environ").read_bytes():
            time.sleep(0.01)
        monkeypatch.setattr(os, "getppid", lambda: parent.pid)
        set_threads(3, local_world_size=1)
        parent.kill()
    assert torch.get_num_threads() == expected
