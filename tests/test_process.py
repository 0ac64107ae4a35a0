"""What a process leaves behind when it leaves the process group."""

import subprocess
import sys

LEAVES_A_CYCLE = """
from pathlib import Path
import torch.distributed as dist
from stem_torchrec.process import join_process_group

def threads():
    return [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]

with join_process_group():
    cycle = [dist.group.WORLD]
    cycle.append(cycle)
    del cycle
    assert "pt_gloo_runloop" in threads(), threads()
assert "pt_gloo_runloop" not in threads(), threads()
"""


def test_no_thread_of_gloo_outlives_the_process_group() -> None:
    """One that does may abort the process at its exit (pytorch/pytorch#190489)."""
    result = subprocess.run([sys.executable, "-c", LEAVES_A_CYCLE], text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
