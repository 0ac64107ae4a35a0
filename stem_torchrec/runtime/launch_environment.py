"""Which rank this process is and where the ranks meet, by the variables of torchrun, srun, mpirun or mpiexec.

Nothing here touches the process: a mapping of variables goes in, ranks and an address come out.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from stem_torchrec.runtime.errors import LaunchError, UserError, reason_of

LOOPBACK = "127.0.0.1"
_FIRST_PORT, _PORTS = 61_440, 4096
"""Ports derived from a job lie above those that Linux gives to outgoing connections."""
_FIX = "start the ranks with torchrun, srun or mpirun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT yourself."


class _Names(NamedTuple):
    """The variables in which a launcher puts its four numbers."""

    rank: str
    world_size: str
    local_rank: str
    local_world_size: str


_TORCH = _Names("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_OPEN_MPI = _Names(*(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")))
_HYDRA = _Names("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
"""Of MPICH and Intel MPI."""
_SLURM = _Names("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks that a launcher has started.

    Example::

        # srun --nodes 2 --ntasks-per-node 8: the second task of the second host
        Ranks(rank=9, world_size=16, local_rank=1, local_world_size=8, job="slurm-4711.0")
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    job: str = ""
    """The same on all ranks, and different in every other launch; empty if the launcher gives no such name."""

    @property
    def on_one_host(self) -> bool:
        """Whether all ranks are on this host."""
        return self.local_world_size == self.world_size


def read_ranks(environ: Mapping[str, str]) -> Ranks:
    """The ranks by the variables of the launcher; rank 0 of 1 without one.

    torchrun's variables come first. mpirun's come before SLURM's, as it starts ranks inside of a SLURM job.

    Raises LaunchError, which names variable and value, where the variables are incomplete or contradict each other.
    """
    names = _names_of_launcher(environ)
    if names is None:
        return Ranks()
    if names is not _TORCH:
        _check_agreement(environ, names)
    size = _whole_number(environ, names.world_size, least=1)
    ranks = Ranks(
        _whole_number(environ, names.rank, below=(names.world_size, size)),
        size,
        *_local_numbers(environ, names, world_size=size),
        job=_job(environ, names),
    )
    if size % ranks.local_world_size:
        raise LaunchError(
            f"{names.world_size} is {size}, but must be a multiple of {names.local_world_size}, which is "
            f"{ranks.local_world_size}; start the same number of ranks on every host."
        )
    return ranks


def is_first_on_host(environ: Mapping[str, str]) -> bool:
    """Whether this process prints what concerns all ranks of its host; True where the variables are wrong."""
    try:
        return read_ranks(environ).local_rank == 0
    except UserError:
        return True


def read_master(environ: Mapping[str, str], ranks: Ranks) -> tuple[str, int]:
    """Address and port at which rank 0 serves the store in which the ranks find each other.

    MASTER_ADDR and MASTER_PORT win. Without them the address is loopback, or the first host of a SLURM step, and the
    port derives from the job.

    Raises LaunchError where they are missing and cannot be derived.
    """
    names = _names_of_launcher(environ)
    if "MASTER_PORT" in environ:
        port = _whole_number(environ, "MASTER_PORT", least=1, limit=65_535)
    elif ranks.job:
        port = _FIRST_PORT + zlib.crc32(ranks.job.encode()) % _PORTS
    else:
        raise LaunchError(f"{_size_of(ranks, names)}, but MASTER_PORT is not set; {_FIX}")
    if "MASTER_ADDR" in environ:
        return _address(environ["MASTER_ADDR"]), port
    if ranks.on_one_host and names is not _TORCH:
        return LOOPBACK, port
    if names is _SLURM:
        return _first_host(environ), port
    raise LaunchError(f"{_size_of(ranks, names)}, but MASTER_ADDR is not set, the name of rank 0's host; {_FIX}")


def slurm_step(environ: Mapping[str, str]) -> str:
    """The name of the SLURM step that this process is a task of, also after SLURM has requeued its job; empty if none.

    Example::

        slurm_step(os.environ)  # "slurm-4711.0"
    """
    has_name = _is_slurm_task(environ) and {"SLURM_JOB_ID", "SLURM_STEP_ID"} <= environ.keys()
    return f"slurm-{environ['SLURM_JOB_ID']}.{environ['SLURM_STEP_ID']}" if has_name else ""


def _names_of_launcher(environ: Mapping[str, str]) -> _Names | None:
    if "RANK" in environ:
        return _TORCH
    if _OPEN_MPI.rank in environ:
        return _OPEN_MPI
    is_slurm_task = _is_slurm_task(environ)
    # srun sets PMI_RANK as well, for a program that uses MPI.
    if _HYDRA.rank in environ and (_HYDRA.local_rank in environ or not is_slurm_task):
        return _HYDRA
    if is_slurm_task:
        return _SLURM
    return _TORCH if any(name in environ for name in _TORCH) else None


def _is_slurm_task(environ: Mapping[str, str]) -> bool:
    """Whether srun has started this process as a task; the script of sbatch and the shell of salloc are one process.

    Those have SLURM_NTASKS, the tasks that srun would start, and SLURM_PROCID=0 too, but no SLURM_STEP_ID or one of the
    largest 32-bit numbers.
    """
    if _SLURM.rank not in environ:
        return False
    if "SLURM_STEP_ID" in environ:
        return not re.fullmatch(r"42949672\d\d", environ["SLURM_STEP_ID"])
    return "SLURM_JOB_ID" not in environ or environ[_SLURM.rank] != "0"


def _value(environ: Mapping[str, str], name: str) -> str:
    if name not in environ and name.startswith("SLURM_STEP_"):
        # Of the job; srun sets them to the step's as well.
        name = name.replace("STEP_NUM_TASKS", "NTASKS").replace("STEP_", "")
    if name not in environ:
        known = next((each for names in (_TORCH, _OPEN_MPI, _HYDRA, _SLURM) for each in names if each in environ), "")
        raise LaunchError(f"{known} is {environ.get(known, '')!r}, but {name} is not set; {_FIX}")
    return environ[name]


def _whole_number(
    environ: Mapping[str, str],
    name: str,
    *,
    least: int = 0,
    limit: int = 10**6,
    below: tuple[str, int] | None = None,
) -> int:
    text = _value(environ, name)
    limit = below[1] - 1 if below else limit
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= limit:
        reason = f", as {below[0]} is {below[1]}" if below else ""
        raise LaunchError(f"{name} is {text!r}, but must be a whole number from {least} to {limit}{reason}; {_FIX}")
    return int(text)


def _local_numbers(environ: Mapping[str, str], names: _Names, *, world_size: int) -> tuple[int, int]:
    """Local rank and local world size; a rank that has neither is alone on its host."""
    neither = not {names.local_rank, names.local_world_size} & environ.keys()
    if neither and (names is _TORCH or world_size == 1):
        return 0, 1
    if names is _SLURM:
        size = _tasks_per_node(_value(environ, names.local_world_size), world_size)
    else:
        size = _whole_number(environ, names.local_world_size, least=1, limit=world_size)
    return _whole_number(environ, names.local_rank, below=(names.local_world_size, size)), size


def _tasks_per_node(text: str, world_size: int) -> int:
    from hostlist import BadHostlist, parse_slurm_tasks_per_node

    try:
        counts = parse_slurm_tasks_per_node(text)
    except BadHostlist as error:
        raise LaunchError(f"SLURM_STEP_TASKS_PER_NODE is {text!r} ({reason_of(error)}); {_FIX}") from error
    if len(set(counts)) != 1 or sum(counts) != world_size:
        raise LaunchError(
            f"SLURM_STEP_TASKS_PER_NODE is {text!r} for {world_size} tasks, but every host must have the same number; "
            "start them with srun --nodes N --ntasks-per-node M."
        )
    return int(counts[0])


def _first_host(environ: Mapping[str, str]) -> str:
    from hostlist import BadHostlist, expand_hostlist

    text = _value(environ, "SLURM_STEP_NODELIST" if "SLURM_STEP_NODELIST" in environ else "SLURM_JOB_NODELIST")
    try:
        return str(expand_hostlist(text)[0])
    except (BadHostlist, IndexError) as error:
        raise LaunchError(f"SLURM's list of nodes is {text!r}, which has no first host; set MASTER_ADDR.") from error


def _job(environ: Mapping[str, str], names: _Names) -> str:
    if names is _SLURM:
        return slurm_step(environ)
    if names is _OPEN_MPI:
        return environ.get("PMIX_NAMESPACE", "")
    return ""


def _check_agreement(environ: Mapping[str, str], names: _Names) -> None:
    """Refuses torchrun's variables that contradict the launcher's, such as a WORLD_SIZE that a shell still has."""
    for torch_name, name in zip(_TORCH[1:3], names[1:3], strict=True):
        if torch_name in environ and environ[torch_name] != _value(environ, name):
            raise LaunchError(
                f"{torch_name} is {environ[torch_name]!r}, but {name} is {_value(environ, name)!r}; unset {torch_name}."
            )


def _size_of(ranks: Ranks, names: _Names | None) -> str:
    return f"{names.world_size if names else 'WORLD_SIZE'} is {ranks.world_size}"


def _address(text: str) -> str:
    if not text or re.search(r"[\s/]", text):
        raise LaunchError(f"MASTER_ADDR is {text!r}, but must be the name or address of rank 0's host.")
    return text
