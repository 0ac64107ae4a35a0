"""This process as one of the ranks: process group, device, threads, memory."""

import gc
import logging
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.internals.pytorch import TRACER_LOGGER
from stem_torchrec.runtime.memory import keep_freed_memory
from stem_torchrec.runtime.versions import fbgemm_has_cuda

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """This process among the ranks, from the environment that torchrun sets; rank 0 of 1 without torchrun.

    Example::

        # torchrun --nnodes 2 --nproc-per-node 8: the second rank of the second host
        Process(rank=9, world_size=16, local_world_size=8, device=torch.device("cuda", 1))
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    start: str = ""
    """Prefix of the keys of this start of the ranks in torchrun's store; empty if torchrun keeps no store."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints and writes files."""
        return self.rank == 0


@contextmanager
def join_process_group(*, timeout: float = 600.0, alone: bool = False) -> Iterator[Process]:
    """Joins the ranks that torchrun started, on the GPU of the local rank or on CPU, and leaves them at the end.

    Args:
        timeout: seconds a rank waits for the others in a collective.
        alone: each process becomes rank 0 of 1, with its share of the host's cores.

    Raises UserError if two ranks would share a GPU.
    """
    _quiet_libraries()
    keep_freed_memory()
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        os.environ.setdefault(name, str(value))
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if alone:
        rank, world_size = 0, 1
    local_rank, local_world_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cpu")
    if trains_on_gpu():
        if local_world_size > torch.cuda.device_count():
            raise UserError(
                f"{local_world_size} ranks on this host would share {torch.cuda.device_count()} GPUs; start one rank "
                "per GPU (-j NODESxGPUS), or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on CPU."
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    # torchrun sets one thread per rank by default, which leaves cores idle.
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size))
    start = ""
    store: dist.Store | None = None
    if alone or "MASTER_ADDR" not in os.environ:
        store = dist.HashStore()
    elif _launcher_keeps_store():
        shared = store_of_launcher("", timeout=timeout)
        start = name_start(shared, rank, world_size, timeout=timeout)
        store = dist.PrefixStore(start, shared)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        rank=rank,
        world_size=world_size,
        store=store,
        timeout=timedelta(seconds=timeout),
    )
    try:
        yield Process(rank, world_size, 1 if alone else local_world_size, device, start)
    finally:
        dist.destroy_process_group()
        # Gloo's threads live as long as anything refers to a group, and sharded modules do so in cycles. One that
        # still lets go of a tensor while the interpreter shuts down aborts the process, so they end here.
        gc.collect()


def _launcher_keeps_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def store_of_launcher(start: str, *, timeout: float) -> dist.Store:
    """Connects to the store through which ranks find each other; torchrun or rank 0 serves it.

    Args:
        start: prefix of the keys, for one start of the ranks.
        timeout: seconds that reading a key waits until it is set.
    """
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=timeout)
    )
    return dist.PrefixStore(start, store) if start else store


def name_start(store: dist.Store, rank: int, world_size: int, *, timeout: float) -> str:
    """A name for this start of the ranks, the same on all ranks and different from those of earlier starts.

    torchrun keeps one store for all starts, which still holds the addresses of ranks that have died, and each host
    counts its restarts for itself. So rank 0 sends its name to every rank that it finds in the store, until each rank
    of this start has confirmed it.

    Args:
        store: shared by all starts.
        rank: of this process.
        world_size: number of ranks of this start.
        timeout: seconds that rank 0 waits for the others.

    Raises dist.DistStoreError, which names the ranks, if some do not come in time.
    """
    token = uuid.uuid4().hex
    store.set(f"hello/{rank}", token)
    if rank:
        name = store.get(f"name/{token}").decode()
        store.set(f"confirmed/{name}/{rank}", "")
        return name
    missing, deadline = set(range(1, world_size)), time.monotonic() + timeout
    while missing:
        for other in sorted(missing):
            if store.check([f"hello/{other}"]):
                # Perhaps of a rank that has died; the one that takes its place says hello later.
                store.set(f"name/{store.get(f'hello/{other}').decode()}", token)
            if store.check([f"confirmed/{token}/{other}"]):
                missing.remove(other)
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"ranks {sorted(missing)} did not come within {timeout:.0f} s")
        time.sleep(0.02)
    return token


def trains_on_gpu() -> bool:
    """Whether ranks on this host use GPUs: torch sees one and FBGEMM has kernels for it."""
    return torch.cuda.is_available() and fbgemm_has_cuda()


def from_first_rank(make: Callable[[], T]) -> T:
    """Calls `make` on rank 0 and returns its result, or raises its error, on every rank. All ranks call it.

    Otherwise an error on rank 0 alone would leave the others waiting until the timeout, or failing because they lost
    it.

    Args:
        make: its result must pickle. A UserError or OSError is raised as it is, any other as RuntimeError with its
            name and message.
    """
    outcome: list[Any] = [None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            outcome = [make()]
        except (UserError, OSError) as error:
            outcome = [error]
        except Exception as error:
            # Not every error can be pickled.
            outcome = [RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)]
    if dist.is_initialized():
        dist.broadcast_object_list(outcome)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _quiet_libraries() -> None:
    """Silences warnings of TorchRec and torch about their own internals, which a user cannot change."""
    for name in ("torchrec", TRACER_LOGGER):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|torchrec)\.")
