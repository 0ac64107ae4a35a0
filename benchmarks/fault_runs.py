"""Runs of train.py on a few ranks of this machine, to be killed, stopped and started again."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.elastic.utils.distributed import get_free_port

from local_ranks import rank_environments

ROOT = Path(__file__).parents[1]


class TrainRun:
    """train.py on `ranks` ranks, each a process of its own, as a launcher starts them.

    Args:
        folder: the run folder.
        options: of train.py.
        ranks: how many.
        launcher: options of torchrun, which starts the ranks instead and is the only process.
    """

    def __init__(
        self, folder: Path, options: Sequence[str], *, ranks: int = 1, launcher: Sequence[str] | None = None
    ) -> None:
        environments, program = rank_environments(ranks), [sys.executable]
        if launcher is not None:
            environments = [dict(os.environ)]
            program += ["-m", "torch.distributed.run", "--master-port", str(get_free_port()), *launcher]
        line = [*program, str(ROOT / "stem_torchrec/train.py"), *options, "--output-dir", str(folder)]
        self.said: list[str] = []
        self.times: list[float] = []
        """When each line of `said` came."""
        self.processes = []
        for environment in environments:
            self.processes.append(self._start(line, environment | {"OMP_NUM_THREADS": "1"}, folder.parent))
        self.listeners = [Thread(target=self._listen, args=(process,)) for process in self.processes]
        for listener in self.listeners:
            listener.start()

    def _start(self, line: Sequence[str], environment: dict[str, str], cwd: Path) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            line,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            start_new_session=True,
        )

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self.times.append(time.perf_counter())
                self.said.append(line)

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Until a line holds `text`."""
        deadline = time.monotonic() + seconds
        while not any(text in line for line in list(self.said)):
            ended = all(process.poll() is not None for process in self.processes)
            assert not ended, "".join(self.said)
            assert time.monotonic() < deadline, "".join(self.said)
            time.sleep(0.002)

    def send(self, number: signal.Signals, *ranks: int) -> None:
        """Sends a signal to some ranks, by default all."""
        for rank in ranks or range(len(self.processes)):
            os.kill(self.processes[rank].pid, number)

    def end(self, seconds: float = 180) -> tuple[list[int], str]:
        """The exit statuses by rank, and all that was said."""
        try:
            statuses = [process.wait(seconds) for process in self.processes]
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
        for listener in self.listeners:
            listener.join()
        return statuses, "".join(self.said)


def differences(run: Path, whole: Path) -> list[str]:
    """What of a run that has ended is not, to the bit, as in another: tensors of the newest checkpoint and of the best
    weights by name, metrics.json, and the logged numbers other than speeds by step."""
    found = []
    for part in (_newest(run).relative_to(run), Path("best")):
        mine, theirs = _tensors(run / part), _tensors(whole / part)
        found += [f"{part}: {name} is in one only" for name in sorted(mine.keys() ^ theirs.keys())]
        found += [f"{part}: {name}" for name in mine if name in theirs and not torch.equal(mine[name], theirs[name])]
    if (run / "metrics.json").read_text() != (whole / "metrics.json").read_text():
        found.append("metrics.json")
    lines, expected = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (run, whole))
    if len(lines) != len(expected):
        found.append(f"metrics.jsonl: {len(lines)} lines instead of {len(expected)}")
    for line, other in zip(map(_without_speeds, lines), map(_without_speeds, expected), strict=False):
        found += [f"metrics.jsonl, step {line['step']}: {name}" for name in line if line[name] != other.get(name)]
    return found


def _newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def _tensors(checkpoint: Path) -> dict[str, Tensor]:
    reader = dcp.FileSystemReader(checkpoint)
    saved = reader.read_metadata().state_dict_metadata
    state: dict[str, Any] = {
        name: torch.empty(item.size, dtype=item.properties.dtype)
        for name, item in saved.items()
        if isinstance(item, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def _without_speeds(line: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(line)
    return {name: value for name, value in values.items() if not name.endswith(("step_ms", "samples_per_second"))}
