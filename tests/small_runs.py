"""Small runs of train.py, to be killed, stopped and started again."""

import atexit
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from distributed import forkserver
from recovery.train_runs import TrainRun

LINE = [
    *("--recipe", "tiny", "--train.epochs", "2", "--train.eval-every", "20", "--train.log-every", "5"),
    *("--data.batch-size", "128", "--data.synthetic.train-rows", "8300", "--checkpoint.steps", "7"),
    *("--model.dropout", "0.1", "--model.embedding-dim", "4", "--data.eval-batch-size", "16"),
]


def start(folder: Path, *options: str, ranks: int = 1, launcher: Sequence[str] | None = None) -> TrainRun:
    """A run of LINE and further options."""
    kind = TrainRun if launcher is not None else _ForkedRun
    return kind(folder, [*LINE, *options], ranks=ranks, launcher=launcher)


class _ForkedRun(TrainRun):
    """The same, of ranks that need not import torch first."""

    def _start(self, line: Sequence[str], environment: dict[str, str], cwd: Path) -> Any:
        return _Forked(line[1:], environment, cwd)


class _Forked:
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

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("train.py", timeout)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def _run_script(said: Connection, line: Sequence[str], environment: dict[str, str], cwd: Path) -> None:
    os.setsid()
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    said.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = list(line)
    try:
        runpy.run_path(line[0], run_name="__main__")
    finally:
        # As an interpreter does, and a forked process does too late.
        atexit._run_exitfuncs()
