"""Ranks that srun or mpirun start, and ranks that do not find each other."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from stem_torchrec.runtime.errors import LaunchError, LostRankError
from stem_torchrec.runtime.rendezvous import choose_interface, connect_to_store, name_start, serve_store
from stem_torchrec.runtime.threads import core_quota, set_threads

from distributed import run_ranks
from small_runs import run_script
from test_host_limits import host


def slurm(rank: int, folder: Path) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "no-such-host-[1]",
    }


def open_mpi(rank: int, folder: Path) -> dict[str, str]:
    return {
        "PMIX_NAMESPACE": f"prterun-{folder}@1",
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    }


def environment_with(launcher: dict[str, str]) -> dict[str, str]:
    """This process's environment with a launcher's variables, and without those that a process group sets."""
    of_torchrun = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in of_torchrun} | launcher


@pytest.mark.parametrize("launcher", [slurm, open_mpi])
def test_srun_and_mpirun_start_ranks_of_one_run(
    tmp_path: Path, launcher: Callable[[int, Path], dict[str, str]]
) -> None:
    environments = [environment_with(launcher(rank, tmp_path)) for rank in range(2)]
    options = ["--recipe", "tiny", "--train.max-steps", "1", "--output-dir", tmp_path / "run"]
    output = run_script("stem_torchrec/train.py", *options, environments=environments)
    assert "16 steps of 2 x 256 an epoch" in output
    assert output.count("best evaluation") == 1


def test_a_wrong_variable_is_named_by_the_rank_that_has_it() -> None:
    environment = environment_with(slurm(1, Path()) | {"SLURM_LOCALID": "9"})
    output = run_script("stem_torchrec/train.py", "--recipe", "tiny", status=2, environments=[environment])
    assert output.startswith("error: SLURM_LOCALID is '9', but must be a whole number from 0 to 1, as ")


def test_a_store_of_one_host_does_not_listen_on_other_addresses() -> None:
    store = serve_store()
    store.set("x", "1")
    assert connect_to_store("127.0.0.1", store.port, timeout=5).get("x") == b"1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", store.port))
    with pytest.raises(LaunchError, match=rf"MASTER_PORT is {store.port}, where rank 0 cannot serve"):
        serve_store(port=store.port)


def test_a_store_that_does_not_answer_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(LostRankError, match=f"no store of the ranks answers at 127.0.0.1 port {port} within 0.3 s"):
            connect_to_store("127.0.0.1", port, timeout=0.3)
    with pytest.raises(
        LaunchError, match=r"no store of the ranks answers at no-such-host\.invalid port 1 within 0\.3 s"
    ):
        connect_to_store("no-such-host.invalid", 1, timeout=0.3)


def test_a_rank_without_rank_0_gives_up() -> None:
    with pytest.raises(LostRankError, match=r"rank 0 did not answer rank 1 within 0\.2 s"):
        name_start(dist.HashStore(), 1, 2, timeout=0.2)


def test_an_unknown_interface_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,nope0")
    with pytest.raises(LaunchError, match="GLOO_SOCKET_IFNAME names 'nope0', but this host has "):
        choose_interface(on_one_host=True)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo,nope0"


def threads_with(value: str) -> int:
    os.environ["OMP_NUM_THREADS"] = value
    set_threads(2, local_world_size=1)
    return torch.get_num_threads()


def test_the_number_of_threads_that_a_user_sets_stays() -> None:
    # The ranks of `run_ranks` begin with one thread.
    assert run_ranks(1, threads_with, "1") == [1]
    assert run_ranks(1, threads_with, "0") == [2]


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, float("inf")),
        ("5:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("5:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, float("inf")),
    ],
)
def test_cores_are_what_the_control_groups_leave(
    tmp_path: Path, membership: str, files: dict[str, str], cores: float
) -> None:
    root = host(tmp_path, membership, **{f"sys/fs/cgroup/{path}": text for path, text in files.items()})
    assert core_quota(root) == cores
