"""A reader's batches from its worker processes, which live exactly as long as the process that reads from them."""

import atexit
import ctypes
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.data.batch import Exposures
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.runtime.errors import DataError, LostRankError, reason_of
from stem_torchrec.runtime.signals import ENDING_SIGNALS

_PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""
_SHARED_MEMORY = "/dev/shm"
_FILES, _FILES_PER_WORKER = 256, 64
"""Open files of a process with workers: a tensor in shared memory is one, and some batches wait for their turn."""


def data_loader(reader: ParquetReader, *, pin_memory: bool = False) -> "BatchLoader":
    """Batches of `reader`, which its worker processes make, in the same order on every iteration.

    Args:
        reader: what to read, by how many workers.
        pin_memory: whether batches come in pinned memory, from which they are copied to a GPU.
    """
    sender = _Sender(shares_memory=_raise_limit_of_files() >= _FILES + _FILES_PER_WORKER * reader.num_workers)
    if reader.num_workers:
        _kill_workers_at_exit()
    return BatchLoader(
        DataLoader(
            reader,
            batch_size=None,
            num_workers=reader.num_workers,
            pin_memory=pin_memory,
            collate_fn=sender,
            worker_init_fn=_start_worker,
            # Each iterator draws a seed. From torch's own generator, a resumed run would draw once more than a run that
            # was never interrupted, and dropout would drop other units.
            generator=torch.Generator(),
        )
    )


class BatchLoader:
    """The batches of a DataLoader.

    Raises DataError on the start of an iteration whose workers cannot start, and LostRankError where one has died.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        if not self._loader.num_workers:
            return iter(self._loader)
        try:
            _try_pipes(2 * self._loader.num_workers + 12)
            with _handler_kept(signal.SIGCHLD):
                return _received(iter(self._loader))
        except OSError as error:
            raise DataError(
                f"--data.num-workers is {self._loader.num_workers}, but the workers cannot start ({reason_of(error)}); "
                "allow more files (ulimit -n), processes or shared memory (df /dev/shm), or give fewer workers."
            ) from error


@contextmanager
def _handler_kept(number: signal.Signals) -> Iterator[None]:
    """A signal is handled after the block as before it.

    torch's handler of SIGCHLD raises an error wherever the main thread is, such as at the start of a thread, for which
    Python then waits for ever. Without the handler, the loader asks every 5 s while it waits for a batch.
    """
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)


def _received(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; raises LostRankError where a worker has died."""
    try:
        yield from batches
    except (RuntimeError, EOFError, OSError) as error:
        # A batch's tensors come by a connection to the worker. An error that a worker raised begins with "Caught".
        of_connection = isinstance(error, EOFError | ConnectionError | FileNotFoundError)
        if str(error).startswith("DataLoader worker") or (of_connection and not str(error).startswith("Caught")):
            raise LostRankError(
                f"a reader process (--data.num-workers) was lost ({reason_of(error)[:200]}), perhaps because memory "
                "ran out; the same command resumes from the last checkpoint."
            ) from error
        raise


def _try_pipes(number: int) -> None:
    """Makes as many pipes and locks as workers need, and drops them; raises OSError where they do not fit.

    Where torch fails to make one, it prints a second error.
    """
    pipes: list[multiprocessing.SimpleQueue[None]] = [multiprocessing.SimpleQueue() for _ in range(number)]
    for pipe in pipes:
        pipe.close()


class _Sender:
    """Pickles a worker's batches: with their tensors in shared memory or, where that is scarce, with the values.

    torch would pickle in a thread that prints an error, such as that of a full /dev/shm, and drops the batch, for which
    the reader would wait for ever. The values take longer, about 1 ms for 1 MiB.
    """

    def __init__(self, *, shares_memory: bool) -> None:
        self._shares_memory = shares_memory

    def __call__(self, item: Batch | Exposures) -> "Batch | Exposures | _Pickled":
        worker = get_worker_info()
        if worker is None:
            return item
        # As if all workers did so at the same time.
        if self._shares_memory and worker.num_workers * _bytes_in(item) <= _room_in_shared_memory():
            return _Pickled(bytes(ForkingPickler.dumps(item)))
        return _Pickled(pickle.dumps(item))


def _bytes_in(item: object) -> int:
    return sum(
        value.nbytes if isinstance(value, Tensor) else _bytes_in(value)
        for value in vars(item).values()
        if isinstance(value, Tensor | KeyedJaggedTensor | Batch)
    )


def _room_in_shared_memory() -> int:
    """Bytes that batches may still take; half is left to others, such as locks of processes."""
    if not os.path.isdir(_SHARED_MEMORY):
        return sys.maxsize  # Other systems than Linux do not limit it.
    memory = os.statvfs(_SHARED_MEMORY)
    return (memory.f_bavail - memory.f_blocks // 2) * memory.f_frsize


class _Pickled:
    """Something that has been pickled already; unpickling gives the thing itself."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __reduce__(self) -> tuple[object, tuple[bytes]]:
        return pickle.loads, (self._content,)


@cache
def _raise_limit_of_files() -> int:
    """Raises the number of files that this process may open to what the system allows; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def _start_worker(worker: int) -> None:
    """Makes a worker ignore the signals that ask a command to end, and end with its rank however that ends.

    A launcher and a terminal send them to these processes as well, but the last checkpoint needs them.
    """
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@cache
def _kill_workers_at_exit() -> None:
    """Kills the workers when this process ends, by an error as well.

    The exit handler of multiprocessing sends SIGTERM to the workers and waits for them to end. They ignore that signal,
    so it would wait forever. This handler is registered later, so it runs earlier.
    """

    def kill() -> None:
        for process in multiprocessing.active_children():
            if process.daemon:
                process.kill()

    atexit.register(kill)
