"""Runs of train.py on a few ranks of this machine that can be killed, and a comparison of two run folders."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.elastic.utils.distributed import get_free_port

from stem_torchrec.runtime.store_path import AnyPath

from common.processes import ROOT, module_path, rank_environments


class TrainRun:
    """Starts train.py on `ranks` ranks, each a process of its own, as a launcher does.

    Args:
        folder: the run folder, local or in a store.
        options: of train.py.
        ranks: number of ranks.
        launcher: options of torchrun, which then is the only process and starts the ranks.
        cwd: the working directory; by default the folder that a local run folder is in.
        script: what Python runs in place of train.py, with its options.
    """

    def __init__(
        self,
        folder: AnyPath,
        options: Sequence[str],
        *,
        ranks: int = 1,
        launcher: Sequence[str] | None = None,
        cwd: Path | None = None,
        script: Sequence[str] = (str(ROOT / "stem_torchrec/train.py"),),
    ) -> None:
        environments, program = rank_environments(ranks), [sys.executable]
        if launcher is not None:
            environments = [dict(os.environ)]
            program += ["-m", "torch.distributed.run", "--master-port", str(get_free_port()), *launcher]
        line = [*program, *script, *options, "--output-dir", str(folder)]
        self.lines: list[str] = []
        """What the ranks have printed so far."""
        self.times: list[float] = []
        """time.perf_counter() at which each of `lines` came."""
        self.processes = []
        cwd = cwd or (folder.parent if isinstance(folder, Path) else Path.cwd())
        for environment in environments:
            self.processes.append(self._start(line, environment | module_path() | {"OMP_NUM_THREADS": "1"}, cwd))
        self.listeners = [Thread(target=self._listen, args=(process,), daemon=True) for process in self.processes]
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
                self.lines.append(line)

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Waits until a printed line contains `text`; fails if the run ends first or after `seconds`."""
        deadline = time.monotonic() + seconds
        while not any(text in line for line in list(self.lines)):
            ended = all(process.poll() is not None for process in self.processes)
            assert not ended, "".join(self.lines)
            assert time.monotonic() < deadline, "".join(self.lines)
            time.sleep(0.002)

    def send(self, number: signal.Signals, *ranks: int) -> None:
        """Sends a signal to the given ranks, by default to all."""
        for rank in ranks or range(len(self.processes)):
            os.kill(self.processes[rank].pid, number)

    def end(self, seconds: float = 180) -> tuple[list[int], str]:
        """Waits until all processes end; returns their exit statuses and all that they printed.

        Kills them if a process does not end within `seconds`, and raises subprocess.TimeoutExpired.
        """
        with self:
            statuses = [process.wait(seconds) for process in self.processes]
        return statuses, "".join(self.lines)

    def __enter__(self) -> "TrainRun":
        return self

    def __exit__(self, *error: object) -> None:
        """Kills what still runs, with the processes that it started; it would outlive a benchmark that is stopped."""
        for process in self.processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.wait(60)
        for listener in self.listeners:
            listener.join()


def differences(run: Path, whole: Path) -> list[str]:
    """Names everything in a finished run that is not bit-identical to another run, `whole`.

    It compares the tensors of the newest checkpoint and of the best weights, metrics.json, and all logged numbers but
    speeds and memory.
    """
    result = []
    for part in (_newest(run).relative_to(run), Path("best")):
        own, other = tensors_of(run / part), tensors_of(whole / part)
        result += [f"{part}: only one run has {name}" for name in sorted(own.keys() ^ other.keys())]
        result += [f"{part}: {name}" for name in own if name in other and not torch.equal(own[name], other[name])]
    if (run / "metrics.json").read_text() != (whole / "metrics.json").read_text():
        result.append("metrics.json")
    lines, expected = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (run, whole))
    if len(lines) != len(expected):
        result.append(f"metrics.jsonl: {len(lines)} lines instead of {len(expected)}")
    for line, wanted in zip(map(_trained_values, lines), map(_trained_values, expected), strict=False):
        result += [f"metrics.jsonl, step {line['step']}: {name}" for name in line if line[name] != wanted.get(name)]
    return result


def _newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor in a folder of torch.distributed.checkpoint, by name."""
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


def _trained_values(line: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(line)
    of_the_machine = ("train/step_ms", "train/samples_per_second", "memory/")
    return {name: value for name, value in values.items() if not name.startswith(of_the_machine)}
