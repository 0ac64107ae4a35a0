"""Joining and leaving the process group, the name of a start, and errors of rank 0."""

import errno
import json
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.errors import LostRankError, UserError
from stem_torchrec.runtime.exit_status import ExitStatus
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.rendezvous import name_start

from distributed import run_ranks

SCRIPT = """
import json, resource, time
from pathlib import Path
import torch
import torch.distributed as dist
from stem_torchrec.runtime.process import join_process_group

def threads():
    return [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(30):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with join_process_group():
    faults()
    print(faults())
    cycle = [dist.group.WORLD]
    cycle.append(cycle)
    del cycle
    # A new thread takes its name only when it runs.
    while "pt_gloo_runloop" not in threads():
        time.sleep(0.01)
print(json.dumps(threads()))
"""


@pytest.fixture(scope="module")
def process() -> tuple[int, list[str]]:
    """Page faults of 30 large tensors in a process group, and the threads after it."""
    result = subprocess.run([sys.executable, "-c", SCRIPT], text=True, capture_output=True, timeout=100)
    assert result.returncode == 0, result.stderr
    faults, threads = result.stdout.splitlines()
    return int(faults), json.loads(threads)


def test_no_thread_of_gloo_outlives_the_process_group(process: tuple[int, list[str]]) -> None:
    """One that does may abort the process at its exit (pytorch/pytorch#190489)."""
    assert "pt_gloo_runloop" not in process[1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt(3)")
def test_a_large_tensor_takes_the_memory_of_the_last_one(process: tuple[int, list[str]]) -> None:
    """From the kernel, each tensor would come in 16,384 pages, or 32 huge ones."""
    assert process[0] < 30 * 32


def test_each_start_has_its_own_name_whatever_the_store_holds_of_others() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=20))
    names = set()
    for ranks in (3, 3, 2, 4):
        with ThreadPoolExecutor(ranks) as executor:
            # Rank 0 is the last, so that it reads the key of the rank that has died before that of its successor.
            futures = [executor.submit(name_start, store, rank, ranks, timeout=20) for rank in reversed(range(ranks))]
            (name,) = {future.result() for future in futures}
        names.add(name)
        store.set("hello/1", "of a rank that has died since")
    assert len(names) == 4


def test_a_start_that_lacks_a_rank_names_it() -> None:
    with pytest.raises(LostRankError, match=r"ranks \[1\] of 2 did not come"):
        name_start(dist.HashStore(), 0, 2, timeout=0.1)


def fail_on_first_rank() -> list[str]:
    def fail_for_want_of_memory() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    raised = []
    for fail in ({}.popitem, fail_for_want_of_memory, lambda: torch.empty(2**60)):
        try:
            from_first_rank(fail)
        except Exception as error:
            raised.append(f"{type(error).__name__} {str(error)[:40]}")
    return raised


def test_whatever_fails_on_the_first_rank_fails_on_all_and_want_of_memory_stays_that() -> None:
    first, second = run_ranks(2, fail_on_first_rank)
    assert first == second
    assert first[0] == "RuntimeError KeyError: 'popitem(): dictionary is empt"
    assert first[1] == "MemoryError CUDA out of memory. Tried to allocate 2."
    assert first[2].startswith("MemoryError [enforce fail at alloc_cpu.cpp")


def status_of_a_full_disk() -> int:
    def write() -> None:
        raise UserError("runs/a.json cannot be written.") from OSError(errno.ENOSPC, "No space left on device")

    try:
        run_main(lambda: from_first_rank(write))
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_a_disk_that_is_full_for_the_first_rank_has_its_status_on_all() -> None:
    assert run_ranks(2, status_of_a_full_disk) == [ExitStatus.UNWRITABLE] * 2
