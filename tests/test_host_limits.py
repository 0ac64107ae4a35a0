"""The memory and the cores that a container or a job leaves to this host's ranks."""

from pathlib import Path

import pytest

from stem_torchrec.runtime.memory import host_memory

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
