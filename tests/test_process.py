"""What a process leaves behind when it leaves the process group, and what it holds until then."""

import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from stem_torchrec.runtime.process import from_first_rank, name_start

from distributed import run_ranks

LEAVES_A_CYCLE = """
import time
from pathlib import Path
import torch.distributed as dist
from stem_torchrec.process import join_process_group

def threads():
    return [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]

with join_process_group():
    cycle = [dist.group.WORLD]
    cycle.append(cycle)
    del cycle
    # A new thread takes its name only when it runs.
    while "pt_gloo_runloop" not in threads():
        time.sleep(0.01)
assert "pt_gloo_runloop" not in threads(), threads()
"""

KEEPS_FREED_MEMORY = """
import resource
import torch
from stem_torchrec.process import join_process_group

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

with join_process_group():
    for _ in range(30):
        torch.ones(2**24)
    before = faults()
    for _ in range(30):
        torch.ones(2**24)
print(faults() - before)
"""


def test_no_thread_of_gloo_outlives_the_process_group() -> None:
    """One that does may abort the process at its exit (pytorch/pytorch#190489)."""
    result = subprocess.run([sys.executable, "-c", LEAVES_A_CYCLE], text=True, capture_output=True, timeout=100)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt(3)")
def test_a_large_tensor_takes_the_memory_of_the_last_one() -> None:
    """From the kernel, each would come in 16,384 pages, or 32 huge ones; the first ones find the place."""
    result = subprocess.run([sys.executable, "-c", KEEPS_FREED_MEMORY], text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 30 * 32


def test_each_start_has_a_name_of_its_own_whatever_the_store_holds_of_others() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=20))
    names = set()
    for ranks in (3, 3, 2, 4):
        with ThreadPoolExecutor(ranks) as executor:
            # Rank 0 comes last, and finds who has died before it looks for whoever lives.
            said = [executor.submit(name_start, store, rank, ranks, timeout=20) for rank in reversed(range(ranks))]
            (name,) = {each.result() for each in said}
        names.add(name)
        store.set("hello/1", "of one that has died since")
    assert len(names) == 4


def test_a_start_that_lacks_a_rank_says_which() -> None:
    with pytest.raises(dist.DistStoreError, match=r"ranks \[1\] did not come"):
        name_start(dist.HashStore(), 0, 2, timeout=0.1)


def fail_on_first_rank() -> str:
    def fail() -> None:
        raise KeyError("x")

    try:
        from_first_rank(fail)
    except RuntimeError as error:
        return str(error)
    return ""


def test_whatever_fails_on_the_first_rank_fails_on_all() -> None:
    assert run_ranks(2, fail_on_first_rank) == ["KeyError: 'x'"] * 2
