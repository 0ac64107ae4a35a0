"""This process as one of the ranks: it joins them, on its device."""

import gc
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from stem_torchrec.runtime.errors import LostRankError, UserError, reason_of, system_cause
from stem_torchrec.runtime.internals.pytorch import TRACER_LOGGER
from stem_torchrec.runtime.launch_environment import LOOPBACK, Ranks, read_master, read_ranks
from stem_torchrec.runtime.memory import is_out_of_memory, keep_freed_memory
from stem_torchrec.runtime.rendezvous import choose_interface, connect_to_store, join_timeout, name_start, serve_store
from stem_torchrec.runtime.threads import set_threads, share_cores
from stem_torchrec.runtime.versions import fbgemm_has_cuda

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """This process among the ranks that a launcher started; rank 0 of 1 without a launcher.

    Example::

        # torchrun --nnodes 2 --nproc-per-node 8: the second rank of the second host
        Process(rank=9, world_size=16, local_world_size=8, device=torch.device("cuda", 1))
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints and writes files."""
        return self.rank == 0


@contextmanager
def join_process_group(*, timeout: float = 600.0, alone: bool = False) -> Iterator[Process]:
    """Joins the ranks that torchrun, srun or mpirun started, on the GPU of the local rank or on CPU; leaves at the end.

    Args:
        timeout: seconds a rank waits for the others in a collective.
        alone: each process becomes rank 0 of 1, with its share of the host's cores.

    Raises LaunchError if the launcher's variables do not fit each other, LostRankError if ranks do not come in time,
    and UserError if two ranks would share a GPU.
    """
    _quiet_libraries()
    keep_freed_memory()
    environ = dict(os.environ)
    ranks = read_ranks(environ)
    for name in ("rank", "world_size", "local_rank", "local_world_size"):
        os.environ[name.upper()] = str(getattr(ranks, name))  # TorchRec reads them.
    device = _device_of(ranks)
    store: dist.Store
    if alone or ranks.world_size == 1:
        rank, world_size, store = 0, 1, dist.HashStore()
        set_threads(len(os.sched_getaffinity(0)) // ranks.local_world_size, local_world_size=ranks.local_world_size)
    else:
        rank, world_size, store = ranks.rank, ranks.world_size, _meet(environ, ranks, timeout=timeout)
        share_cores(store, rank, world_size, local_world_size=ranks.local_world_size)
    choose_interface(on_one_host=world_size == 1 or ranks.on_one_host)
    store.set_timeout(timedelta(seconds=timeout))
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=rank,
            world_size=world_size,
            store=store,
            timeout=timedelta(seconds=timeout),
        )
    except RuntimeError as error:
        raise LostRankError(f"rank {rank} cannot connect to the other ranks ({reason_of(error)[:200]}).") from error
    try:
        yield Process(rank, world_size, 1 if alone else ranks.local_world_size, device)
    finally:
        dist.destroy_process_group()
        # Gloo's threads live as long as anything refers to a group, and sharded modules do so in cycles. One that
        # still lets go of a tensor while the interpreter shuts down aborts the process, so they end here.
        gc.collect()


def _device_of(ranks: Ranks) -> torch.device:
    if not trains_on_gpu():
        return torch.device("cpu")
    if ranks.local_world_size > torch.cuda.device_count():
        raise UserError(
            f"{ranks.local_world_size} ranks on this host would share {torch.cuda.device_count()} GPUs; start one rank "
            "per GPU (-j NODESxGPUS), or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on CPU."
        )
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    return device


def _meet(environ: Mapping[str, str], ranks: Ranks, *, timeout: float) -> dist.Store:
    """A store of this start of the ranks, which torchrun serves, or else rank 0."""
    host, port = read_master(environ, ranks)
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}  # For another process group of this process.
    store: dist.Store
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun ends all ranks if one is lost, so slow ones have time.
        wait = join_timeout(environ, default=timeout)
        store = connect_to_store(host, port, timeout=wait)
    else:
        wait = join_timeout(environ, default=60)
        host = LOOPBACK if ranks.on_one_host else host
        served = _serve_for_life(host if ranks.on_one_host else "", port) if ranks.rank == 0 else None
        # Another job may have the same port.
        store = dist.PrefixStore(ranks.job, served or connect_to_store(host, port, timeout=wait))
    return dist.PrefixStore(name_start(store, ranks.rank, ranks.world_size, timeout=wait), store)


@cache
def _serve_for_life(host: str, port: int) -> dist.TCPStore:
    """As long as something refers to a process group its store lives, so the next group could not have the port."""
    return serve_store(host, port)


def trains_on_gpu() -> bool:
    """Whether ranks on this host use GPUs: torch sees one and FBGEMM has kernels for it."""
    return torch.cuda.is_available() and fbgemm_has_cuda()


def from_first_rank(make: Callable[[], T]) -> T:
    """Calls `make` on rank 0 and returns its result, or raises its error, on every rank. All ranks call it.

    Otherwise an error on rank 0 alone would leave the others waiting until the timeout, or failing because they lost
    it.

    Args:
        make: its result must pickle. A UserError or OSError is raised as it is, a failed allocation as MemoryError with
            its message, any other error as RuntimeError with its name and message.
    """
    outcome: list[Any] = [None, None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            outcome[0] = make()
        except (UserError, OSError) as error:
            # The cause, for the exit status, is not pickled with its error.
            outcome = [error, system_cause(error)]
        except Exception as error:
            # Not every error can be pickled.
            told = RuntimeError(f"{type(error).__name__}: {error}")
            outcome[0] = (MemoryError(str(error)) if is_out_of_memory(error) else told).with_traceback(
                error.__traceback__
            )
    if dist.is_initialized():
        dist.broadcast_object_list(outcome)
    result, cause = outcome
    if isinstance(result, Exception):
        result.__cause__ = result.__cause__ or cause
        raise result
    return result


def _quiet_libraries() -> None:
    """Silences warnings of TorchRec and torch about their own internals, which a user cannot change."""
    for name in ("torchrec", TRACER_LOGGER):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|torchrec)\.")
