"""Real processes with a gloo process group, for tests of what happens between ranks."""

import faulthandler
import gc
import multiprocessing
import os
import pickle
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

STARTUP_SECONDS = 30  # Until torch is imported and a child watches its own time, on a busy machine.


def run_ranks(
    world_size: int,
    function: Callable[..., Any],
    *args: Any,
    timeout: float = 120,
    ranks_per_host: int | None = None,
) -> list[Any]:
    """Calls `function(*args)` on `world_size` new processes joined by gloo; returns their results by rank.

    Inside, `dist.get_rank()` tells the ranks apart, RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE are set as
    torchrun sets them, and torch uses one thread. The ranks are forked from a process that imports torch once, at the
    first call.

    Args:
        world_size: number of processes.
        function: a function at the top level of a module, since the children import it by name.
        *args: its arguments; they must pickle, as must the results. Tensors arrive as copies.
        timeout: seconds after which a rank is stopped and its stack shown.
        ranks_per_host: number of ranks that share a host, by LOCAL_WORLD_SIZE; all by default.

    Raises:
        RuntimeError: a rank raised, died or ran out of time. The message has the traceback of every such rank, the
            earliest first, because the others often fail only because they lost that rank.

    Example::

        def total(x):
            dist.all_reduce(x)
            return x

        def test_all_reduce_sums():
            assert run_ranks(2, total, torch.ones(1)) == [torch.tensor([2.0])] * 2
    """
    __tracebackhide__ = True  # pytest shows the ranks' tracebacks and the test, not this function.
    call = pickle.dumps((function, args))
    local_size = ranks_per_host or world_size
    with tempfile.TemporaryDirectory(prefix="run_ranks_") as directory:
        folder = Path(directory)
        # Not daemonic, since a DataLoader's workers are children of their own.
        processes: list[BaseProcess] = [
            forkserver().Process(target=_run_rank, args=(rank, world_size, local_size, call, folder, timeout))
            for rank in range(world_size)
        ]
        try:
            for process in processes:
                process.start()
            _wait_for_all_or_first_failure(processes, timeout + STARTUP_SECONDS)
            if any(process.exitcode != 0 for process in processes):
                raise RuntimeError(_describe_failures(processes, folder))
            return [pickle.loads((folder / f"{rank}.result").read_bytes()) for rank in range(world_size)]
        finally:
            for process in processes:
                _kill(process)


def forkserver() -> ForkServerContext:
    """Starts processes by forking one that has imported torch, torchrec and sklearn, which takes seconds.

    A fork of this process would copy its thread pools in an unusable state.
    """
    context = multiprocessing.get_context("forkserver")
    # Not the commands, which import what they need when they run.
    preloaded = ["stem_torchrec.training.trainer", "stem_torchrec.training.run_evaluation", "sklearn.metrics"]
    context.set_forkserver_preload(preloaded)
    return context


def _run_rank(rank: int, world_size: int, local_size: int, call: bytes, folder: Path, timeout: float) -> None:
    os.setpgid(0, 0)  # A group of its own, so that killing the rank kills its DataLoader workers as well.
    gc.freeze()  # The collection below would visit, and so copy, all that the imports have made.
    log = (folder / f"{rank}.log").open("w")
    # Also ends a rank whose parent was killed and could not clean up.
    faulthandler.dump_traceback_later(timeout, exit=True, file=log)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank % local_size),
        "LOCAL_WORLD_SIZE": str(local_size),
    }
    if "lo" in (name for _, name in socket.if_nameindex()):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # The host's name need not resolve in a container.
    torch.set_num_threads(1)
    try:
        function, args = pickle.loads(call)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'store'}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        result = pickle.dumps(function(*args))
        dist.barrier()  # So that no rank closes a connection that another one still uses.
        dist.destroy_process_group()
        gc.collect()  # Ends gloo's threads, as in stem_torchrec.runtime.process.
    except BaseException:
        log.write(traceback.format_exc())
        log.close()
        os._exit(1)  # A normal exit would wait for threads that wait for the other ranks.
    (folder / f"{rank}.result").write_bytes(result)


def _wait_for_all_or_first_failure(processes: list[BaseProcess], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while alive := [process for process in processes if process.exitcode is None]:
        ready = wait([process.sentinel for process in alive], timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            return
        if any(process.exitcode not in (None, 0) for process in processes):
            # The other ranks fail as soon as they notice; a second is enough for their tracebacks.
            wait_until = time.monotonic() + 1.0
            for process in processes:
                process.join(max(0.0, wait_until - time.monotonic()))
            return


def _describe_failures(processes: list[BaseProcess], folder: Path) -> str:
    logs = {rank: folder / f"{rank}.log" for rank in range(len(processes))}
    failures = []
    for rank, process in enumerate(processes):
        text = logs[rank].read_text() if logs[rank].exists() else ""
        if text:
            failures.append((logs[rank].stat().st_mtime_ns, f"rank {rank}:\n{text}"))
        elif process.exitcode is None:
            failures.append((time.time_ns(), f"rank {rank}: still running, killed"))
        elif process.exitcode != 0:
            failures.append((0, f"rank {rank}: died with exit code {process.exitcode} and no traceback"))
    return "\n".join(text for _, text in sorted(failures))


def _kill(process: BaseProcess) -> None:
    if process.pid is None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()  # It ended with all its children, or died before it got a group of its own.
    process.join()
