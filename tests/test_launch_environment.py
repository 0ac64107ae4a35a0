"""Ranks and where they meet, from what torchrun, SLURM 22.05, Open MPI 5 and MPICH 5 set."""

import os
import socket

import pytest

from stem_torchrec.runtime.errors import LaunchError, LostRankError
from stem_torchrec.runtime.launch_environment import Ranks, is_first_on_host, read_master, read_ranks
from stem_torchrec.runtime.process import join_process_group
from stem_torchrec.runtime.rendezvous import join_timeout

from distributed import run_ranks

TORCH = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
MEETING = {"MASTER_ADDR": "host", "MASTER_PORT": "29500"}
SLURM_JOB = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
SLURM = SLURM_JOB | {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-host-26861@1",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.quick
@pytest.mark.parametrize(
    ("environ", "ranks"),
    [
        pytest.param({}, Ranks(), id="no launcher"),
        pytest.param(TORCH, Ranks(1, 2, 1, 2), id="torchrun"),
        pytest.param({"RANK": "1", "WORLD_SIZE": "2"}, Ranks(1, 2, 0, 1), id="one rank on each host"),
        pytest.param(SLURM, Ranks(3, 4, 1, 2, "slurm-7.0"), id="srun"),
        pytest.param(SLURM | {"PMI_RANK": "3", "PMI_SIZE": "4"}, Ranks(3, 4, 1, 2, "slurm-7.0"), id="srun --mpi=pmi2"),
        pytest.param(SLURM | TORCH, Ranks(1, 2, 1, 2), id="torchrun under srun"),
        pytest.param(SLURM_JOB, Ranks(), id="the script of sbatch"),
        pytest.param(SLURM_JOB | {"SLURM_STEP_ID": "4294967290"}, Ranks(), id="the shell of salloc"),
        pytest.param({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, Ranks(), id="salloc's own shell"),
        pytest.param(SLURM | OPEN_MPI, Ranks(1, 2, 1, 2, "prterun-host-26861@1"), id="mpirun in a SLURM job"),
        pytest.param(MPICH, Ranks(1, 2, 1, 2), id="mpiexec of MPICH"),
    ],
)
def test_ranks_are_what_the_launcher_says(environ: dict[str, str], ranks: Ranks) -> None:
    assert read_ranks(environ) == ranks


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (TORCH | {"RANK": "x"}, r"^RANK is 'x', but must be a whole number from 0 to 1, as WORLD_SIZE is 2; start"),
        (TORCH | {"RANK": ""}, "^RANK is '', but must be"),
        (TORCH | {"RANK": "2"}, "^RANK is '2', but must be a whole number from 0 to 1"),
        (TORCH | {"RANK": "-1"}, "^RANK is '-1', but must be"),
        (TORCH | {"RANK": "\u0661"}, "^RANK is '\u0661', but must be"),
        (TORCH | {"WORLD_SIZE": "0"}, "^WORLD_SIZE is '0', but must be a whole number from 1 to"),
        (TORCH | {"WORLD_SIZE": "9" * 5000}, "^WORLD_SIZE is '9+', but must be"),
        (TORCH | {"WORLD_SIZE": "3"}, "^WORLD_SIZE is 3, but must be a multiple of LOCAL_WORLD_SIZE, which is 2;"),
        (
            TORCH | {"LOCAL_RANK": "2"},
            "^LOCAL_RANK is '2', but must be a whole number from 0 to 1, as LOCAL_WORLD_SIZE",
        ),
        (TORCH | {"LOCAL_WORLD_SIZE": "4"}, "^LOCAL_WORLD_SIZE is '4', but must be a whole number from 1 to 2;"),
        ({"RANK": "0"}, "^RANK is '0', but WORLD_SIZE is not set; start the ranks with"),
        ({"WORLD_SIZE": "2"}, "^WORLD_SIZE is '2', but RANK is not set;"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "but LOCAL_WORLD_SIZE is not set;"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}, "but SLURM_TASKS_PER_NODE is not set;"),
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3,1"},
            "^SLURM_STEP_TASKS_PER_NODE is '3,1' for 4 tasks, but every host",
        ),
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x"},
            r"^SLURM_STEP_TASKS_PER_NODE is '2\(x' \(bad task",
        ),
        (SLURM | {"WORLD_SIZE": "8"}, "^WORLD_SIZE is '8', but SLURM_STEP_NUM_TASKS is '4'; unset WORLD_SIZE."),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "^PMI_RANK is '1', but MPI_LOCALNRANKS is not set;"),
    ],
)
def test_variables_that_do_not_fit_are_named(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(LaunchError, match=sentence):
        read_ranks(environ)
    assert is_first_on_host(environ)  # The process that has them prints the sentence.


def test_only_the_first_rank_of_a_host_speaks_for_it() -> None:
    assert not is_first_on_host(SLURM)
    assert is_first_on_host(SLURM | {"SLURM_PROCID": "2", "SLURM_LOCALID": "0"})


@pytest.mark.parametrize(
    ("environ", "host"),
    [
        pytest.param(TORCH | MEETING, "host", id="given"),
        pytest.param(SLURM, "gpu07", id="first host of the step"),
        pytest.param(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4"}, "127.0.0.1", id="a step on one host"),
        pytest.param(OPEN_MPI, "127.0.0.1", id="mpirun on one host"),
    ],
)
def test_ranks_meet_at_the_host_of_rank_0(environ: dict[str, str], host: str) -> None:
    address, port = read_master(environ, read_ranks(environ))
    assert address == host
    assert port == 29_500 if "MASTER_PORT" in environ else 61_440 <= port < 65_536


def test_jobs_meet_at_different_ports() -> None:
    ports = {
        read_master(environ, read_ranks(environ))[1]
        for environ in (SLURM, SLURM | {"SLURM_STEP_ID": "1"}, SLURM | {"SLURM_JOB_ID": "8"}, OPEN_MPI)
    }
    assert len(ports) == 4
    assert read_master(SLURM | MEETING, read_ranks(SLURM)) == ("host", 29_500)


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (TORCH, "^WORLD_SIZE is 2, but MASTER_PORT is not set; start the ranks with"),
        (TORCH | {"MASTER_PORT": "29500"}, "^WORLD_SIZE is 2, but MASTER_ADDR is not set, the name of rank 0's host;"),
        (
            TORCH | MEETING | {"MASTER_PORT": "http"},
            "^MASTER_PORT is 'http', but must be a whole number from 1 to",
        ),
        (TORCH | MEETING | {"MASTER_PORT": "0"}, "^MASTER_PORT is '0', but must be"),
        (TORCH | MEETING | {"MASTER_PORT": "99999"}, "^MASTER_PORT is '99999', but must be"),
        (TORCH | MEETING | {"MASTER_ADDR": ""}, "^MASTER_ADDR is '', but must be the name or address"),
        (MPICH, "^PMI_SIZE is 2, but MASTER_PORT is not set;"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "4"}, "^OMPI_COMM_WORLD_SIZE is 4, but MASTER_ADDR is not set"),
        (SLURM | {"SLURM_STEP_NODELIST": "gpu["}, r"^SLURM's list of nodes is 'gpu\[', which has no first host;"),
    ],
)
def test_a_place_to_meet_that_is_missing_is_named(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(LaunchError, match=sentence):
        read_master(environ, read_ranks(environ))


@pytest.mark.parametrize("value", ["a minute", "nan", "-1", "0", "", "0.5", "1e3", "1000000", "\u0661"])
def test_a_time_to_join_that_is_no_number_of_seconds_is_named(value: str) -> None:
    sentence = f"^STEM_JOIN_TIMEOUT is '{value}', but must be a whole number of seconds from 1 to 999999.$"
    with pytest.raises(LaunchError, match=sentence):
        join_timeout({"STEM_JOIN_TIMEOUT": value}, default=60)


def errors_of_joining(times: tuple[str, ...]) -> list[str]:
    """Why rank 1 does not join by STEM_JOIN_TIMEOUT where rank 0 has not started."""
    errors = []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused.getsockname()[1])}
        for seconds in times:
            os.environ.update(TORCH | meeting | {"STEM_JOIN_TIMEOUT": seconds})
            with pytest.raises((LaunchError, LostRankError)) as error, join_process_group():
                pass
            errors.append(str(error.value))
    return errors


def test_ranks_wait_for_each_other_as_long_as_the_user_says() -> None:
    assert join_timeout({"STEM_JOIN_TIMEOUT": "300"}, default=60) == 300
    assert join_timeout({}, default=60) == 60
    ((waited, refused),) = run_ranks(1, errors_of_joining, ("1", "-1"))
    assert waited.startswith("no store of the ranks answers at 127.0.0.1 port ")
    assert " within 1 s (" in waited
    assert refused.startswith("STEM_JOIN_TIMEOUT is '-1', but must be")
