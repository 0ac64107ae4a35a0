"""What a process leaves behind when it leaves the process group, and what it holds until then."""

import platform
import subprocess
import sys

import pytest

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
