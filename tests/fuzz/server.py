"""Runs commands in forks of one process that has imported torch, so that an example takes a fraction of a second.

The process reads a request as a line of JSON and writes the answer as one. It never computes with torch itself: the
threads of a computation do not survive a fork.
"""

import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODULES = {
    name: f"stem_torchrec.{name}"
    for name in ("train", "evaluate", "calibrate", "convert", "export", "score", "tune", "compare", "report", "prepare")
}
MODULES |= {
    "apply_delta": "stem_torchrec.apply_delta",
    "inspect_run": "stem_torchrec.inspect_run",
    "resume": "fuzz.resumed",
}
SCRIPTS = {name: f"datasets/{name}.py" for name in ("synthetic", "kuairand")}
BENCHMARKS = ("plan", "sharding", "throughput", "metrics", "conflict", "faults", "checkpoint_pause")
SCRIPTS |= {name: f"benchmarks/{name}.py" for name in BENCHMARKS}
COMMANDS = (*MODULES, *SCRIPTS)
# What the commands import while they run, so that no fork pays for it.
LATER = ("tensorboard.compat.tensorflow_stub", "torch.utils.tensorboard", "pydantic.dataclasses", "torch._dynamo")
LATER += ("planning.run", "sweep.run", "contest.run", "studies.exact_metrics", "studies.task_conflict")
LATER += ("recovery.soak", "recovery.pauses", "kuairand_exposures", "stem_torchrec.preparation.prepare_log")
LATER += ("stem_torchrec.serving.export_run", "torch.export", "torch._export.serde.serialize")
LATER += ("stem_torchrec.calibration.calibrate_run", "stem_torchrec.serving.score_file")
LATER += ("stem_torchrec.serving.apply_deltas", "stem_torchrec.training.run_deltas")
LATER += ("stem_torchrec.run_report.write_report", "stem_torchrec.inspection.inspect_runs")
MAX_FILE = 2**28
"""Bytes of a file that an example may write."""


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    status: int
    """The exit status; minus the signal's number if a signal ended it."""
    output: str
    """Standard output and error, the last 20,000 characters."""
    seconds: float
    hung: bool = False


class Server:
    """A warm process; the first call starts it, which takes some seconds."""

    def __init__(self) -> None:
        path = os.pathsep.join(str(ROOT / folder) for folder in (".", "tests", "benchmarks", "datasets"))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "fuzz.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**_kept_environment(), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def run(self, command: str, args: list[str], *, folder: Path, env: dict[str, str], limit: float) -> Answer:
        """Runs a command in `folder`, for at most `limit` seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"command": command, "args": args, "folder": str(folder), "env": env, "limit": limit}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Answer(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _kept_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}


def serve() -> None:
    """Answers requests until standard input ends."""
    for name in (*MODULES.values(), *LATER):
        importlib.import_module(name)
    from stem_torchrec.training.configuration import config_from_command_line

    config_from_command_line([])  # Fills the caches of the parsers.
    gc.collect()
    gc.freeze()  # A fork's collections then leave these objects alone.
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    output, start = Path(request["folder"]).with_suffix(".txt"), time.monotonic()
    process = os.fork()
    if process == 0:
        _run(request, output)
    ended = os.pidfd_open(process)
    hung = not select.select([ended], [], [], request["limit"])[0]
    seconds = time.monotonic() - start
    os.close(ended)
    # The group, as the command may have left processes behind.
    for kill, number in ((os.killpg, process), (os.kill, process)):
        try:
            kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    text = output.read_bytes().decode(errors="replace")
    output.unlink()
    return {"status": status, "output": text[-20_000:], "seconds": seconds, "hung": hung}


def _run(request: dict[str, Any], output: Path) -> None:
    os.setpgrp()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE, MAX_FILE))
    home = {"HOME": f"{request['folder']}/home", "TMPDIR": f"{request['folder']}/tmp", "OMP_NUM_THREADS": "1"}
    os.environ.clear()
    os.environ.update({**_kept_environment(), **home, **request["env"]})
    os.chdir(request["folder"])
    command = request["command"]
    sys.argv = [f"{command}.py", *request["args"]]
    status: Any = 0
    try:
        if command in MODULES:
            sys.modules[MODULES[command]].main()
        else:
            runpy.run_path(str(ROOT / SCRIPTS[command]), run_name="__main__")
    except SystemExit as error:
        status = error.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status or 0)


if __name__ == "__main__":
    serve()
