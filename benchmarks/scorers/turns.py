"""A side in a process of its own, which waits while the others have their turns."""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common.processes import module_command, module_path

_WAITING = {"OMP_WAIT_POLICY": "passive"}
"""Threads that wait do not spin, as they would take the cores of the side whose turn it is."""


class Seat:
    """A process of `worker.py`. Starting it waits until it has scored a row."""

    def __init__(self, name: str, *, run: str, bundles: Path, log: str, split: str) -> None:
        start = time.perf_counter()
        self.process = subprocess.Popen(
            module_command("scorers.worker", name, run, str(bundles), log, split),
            env=os.environ | _WAITING | module_path(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()
        self.start_seconds = time.perf_counter() - start
        """From the start of Python to the first probability."""

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request that `worker.py` lists."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side has ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def seats(names: Sequence[str], *, run: str, bundles: Path, log: str, split: str) -> Iterator[dict[str, Seat]]:
    """Starts the sides one after another, and ends them with the block."""
    with ExitStack() as stack:
        taken = {}
        for name in names:
            taken[name] = Seat(name, run=run, bundles=bundles, log=log, split=split)
            stack.callback(taken[name].close)
        yield taken
