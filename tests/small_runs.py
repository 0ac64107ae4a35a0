"""Small runs of train.py that are killed, stopped and resumed, and other scripts, on ranks that import torch once."""

import atexit
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stem_torchrec.runtime.store_path import AnyPath

from common.processes import ROOT, rank_environments
from distributed import forkserver
from recovery.train_runs import TrainRun

LINE = [
    *("--recipe", "tiny", "--train.epochs", "2", "--train.eval-every", "20", "--train.log-every", "5"),
    *("--data.batch-size", "128", "--data.synthetic.train-rows", "8300", "--checkpoint.steps", "7"),
    *("--model.dropout", "0.1", "--model.embedding-dim", "4", "--data.eval-batch-size", "16"),
]
"""Options of a run that makes 66 steps on two ranks, evaluates after 20, 40, 60 and 66 and saves every 7 steps."""


def start(
    folder: AnyPath, *options: str, ranks: int = 1, launcher: Sequence[str] | None = None, cwd: Path | None = None
) -> TrainRun:
    """Starts a run with LINE and further options, on forked ranks or, with its options, under torchrun."""
    kind = TrainRun if launcher is not None else _ForkedRun
    return kind(folder, [*LINE, *options], ranks=ranks, launcher=launcher, cwd=cwd)


def run_script(
    script: str,
    *options: str | Path,
    ranks: int = 1,
    status: int | Sequence[int] = 0,
    cwd: Path = ROOT,
    seconds: float = 120,
    environments: Sequence[dict[str, str]] | None = None,
) -> str:
    """Runs a script of the repository on forked ranks; returns what they print.

    Args:
        script: its path from the root of the repository.
        *options: of the script.
        ranks: number of ranks.
        status: the exit status that all ranks must have, or that of each.
        cwd: the working directory.
        seconds: the time that the ranks may take.
        environments: the environment of each rank, by default as torchrun sets it.
    """
    line = [str(word) for word in (ROOT / script, *options)]
    environments = environments or rank_environments(ranks)
    ranks = len(environments)
    processes = [Forked(line, environment, cwd) for environment in environments]
    with ThreadPoolExecutor(ranks) as readers:
        texts = readers.map(Forked.read, processes)
        statuses = [process.wait(seconds) for process in processes]
        text = "".join(texts)
    assert statuses == ([status] * ranks if isinstance(status, int) else status), text
    return text


class _ForkedRun(TrainRun):
    """A run whose ranks are forked from a process that has imported torch."""

    def _start(self, line: Sequence[str], environment: dict[str, str], cwd: Path) -> Any:
        return Forked(line[1:], environment, cwd)


class Forked:
    """A forked process, with as much of subprocess.Popen as runs use."""

    def __init__(self, line: Sequence[str], environment: dict[str, str], cwd: Path) -> None:
        context = forkserver()
        reader, writer = context.Pipe(duplex=False)
        self._process = context.Process(target=_run_script, args=(writer, line, environment, cwd))
        self._process.start()
        # At exit multiprocessing waits for every child; this is called earlier.
        atexit.register(self._process.kill)
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        reader.close()
        self.pid = self._process.pid

    def read(self) -> str:
        """All that it prints until it ends."""
        with self.stdout as output:
            return output.read()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired("a forked rank", timeout)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def _run_script(output: Connection, line: Sequence[str], environment: dict[str, str], cwd: Path) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # As in a process that a shell starts, not the forkserver.
    gc.freeze()  # A collection at the end would visit, and so copy, all that the imports have made.
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = list(line)
    try:
        runpy.run_path(line[0], run_name="__main__")
    finally:
        # As an interpreter does, and a forked process does too late.
        atexit._run_exitfuncs()
