"""Processes of a benchmark on this machine: the command of a module, and the environment of each rank."""

import os
import sys
from pathlib import Path

from torch.distributed.elastic.utils.distributed import get_free_port

BENCHMARKS = Path(__file__).parents[1]
ROOT = BENCHMARKS.parent


def module_command(module: str, *args: str) -> list[str]:
    """The command that runs a module of the benchmark packages; it needs `module_path` in its environment."""
    # -P keeps the working directory off the path: a folder of results there may have the name of a package.
    return [sys.executable, "-P", "-m", module, *args]


def module_path() -> dict[str, str]:
    """The environment variable by which a child process finds the benchmark packages and stem_torchrec."""
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(ROOT), *([inherited] if inherited else [])])}


def rank_environments(ranks: int) -> list[dict[str, str]]:
    """The environment of each rank's process, with the variables that torchrun sets.

    A single rank gets no MASTER_ADDR and MASTER_PORT, as it has no other rank to meet.
    """
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port())} if ranks > 1 else {}
    sizes = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [os.environ | meeting | sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
