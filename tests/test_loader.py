"""Workers that get little shared memory or few files."""

import multiprocessing
import os
import resource
import signal
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from stem_torchrec.data.loader import BatchLoader, data_loader
from stem_torchrec.runtime.errors import DataError, LostRankError

from distributed import run_ranks
from test_reader import reader_of, rows_of, write_log


def two_workers(folder: Path) -> BatchLoader:
    """A loader whose workers are forks of this rank, as in a process that a shell starts, and not of the forkserver."""
    multiprocessing.set_start_method("fork", force=True)
    return data_loader(reader_of(folder, batch_size=9, shuffle_rows=30, num_workers=2))


def read_with_files(folder: Path, free: int) -> Any:
    """The rows that two workers read where this process may open `free` more files; the error if they cannot start."""
    files = len(os.listdir("/proc/self/fd")) + free
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    try:
        return [row for batch in two_workers(folder) for row in rows_of(batch)]
    except DataError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_with_few_files_send_their_batches_through_pipes(tmp_path: Path) -> None:
    folder = write_log(tmp_path, 100, [[10] * 5, [50]])
    assert run_ranks(1, read_with_files, folder, 60) == run_ranks(1, read_with_files, folder, 2000)
    (error,) = run_ranks(1, read_with_files, folder, 8)
    assert error.startswith("--data.num-workers is 2, but the workers cannot start ([Errno 24] Too many open files);")


def tensors_of(batches: Iterable[Any]) -> list[list[Tensor]]:
    return [
        [each.dense_features, each.sparse_features.values(), each.sparse_features.lengths(), each.labels]
        for each in batches
    ]


def read_with_room(folder: Path, room: int) -> tuple[set[bool], list[list[Tensor]]]:
    """Whether the batches of two workers are in shared memory, where that has `room` bytes, and their tensors."""
    # Half of the blocks are left to others.
    memory = SimpleNamespace(f_blocks=1000, f_bavail=500 + room, f_frsize=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: memory)
        batches = tensors_of(two_workers(folder))
    return {tensor.is_shared() for of_batch in batches for tensor in of_batch}, batches


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("room", "is_shared"), [(0, {False}), (100, {False, True}), (10**6, {True})], ids=str)
def test_workers_send_the_same_batches_with_and_without_room_in_shared_memory(
    tmp_path: Path, room: int, is_shared: set[bool]
) -> None:
    folder = write_log(tmp_path, 100, [[10] * 5, [50]])
    ((shared, batches),) = run_ranks(1, read_with_room, folder, room)
    # Of 100 bytes the last batch, of one row, takes less than its worker's half.
    assert shared == is_shared
    # This process makes the batches of the workers in turn.
    expected = tensors_of(reader_of(folder, batch_size=9, shuffle_rows=30, num_workers=2))
    assert len(batches) == 12
    torch.testing.assert_close(batches, expected, rtol=0, atol=0, equal_nan=True)


def read_after_a_kill(folder: Path) -> tuple[str, bool]:
    """The error of the loader whose first worker is killed, and whether SIGCHLD is still handled as before."""
    loader = data_loader(reader_of(folder, batch_size=1, num_workers=1))
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    try:
        list(batches)
    except LostRankError as error:
        return str(error), signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    raise AssertionError("all batches have come")


def test_a_killed_worker_is_an_error_where_the_next_batch_is_read(tmp_path: Path) -> None:
    folder = write_log(tmp_path, 500, [[100] * 5])
    ((error, is_handled_as_before),) = run_ranks(1, read_after_a_kill, folder)
    assert error.startswith("a reader process (--data.num-workers) was lost (")
    assert is_handled_as_before
