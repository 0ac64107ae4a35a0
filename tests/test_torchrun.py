"""The package's torchrun: which status it has, and that ranks get its signals."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from stem_torchrec.runtime.exit_status import ExitStatus
from stem_torchrec.runtime.torchrun import status_of

from kuairand_files import ROOT

SCRIPT = """
import os, signal, sys, time

def end(number, frame):
    os.write(1, b"asked\\n")
    sys.exit(75)

signal.signal(signal.SIGTERM, end)
os.write(1, b"ready\\n")
time.sleep(100)
"""


def failure(status: int, *, seconds: int) -> ProcessFailure:
    failed = ProcessFailure(local_rank=0, pid=1, exitcode=status, error_file="")
    failed.timestamp = seconds
    return failed


def launched(*options: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "stem_torchrec.runtime.torchrun", *options]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(("status", "expected"), [(2, 2), (75, 75), (-9, 137)])
def test_the_status_is_that_of_the_rank_that_failed_first(status: int, expected: int) -> None:
    failures = {0: failure(3, seconds=8), 1: failure(status, seconds=7)}
    assert status_of(ChildFailedError("train", failures)) == expected


def test_a_signal_reaches_the_ranks_which_are_not_started_again_nor_reported(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "3"]
    line = [sys.executable, "-m", "stem_torchrec.runtime.torchrun", *options, str(script)]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert [job.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        job.send_signal(signal.SIGTERM)
        output, error = job.communicate()
        assert output == "asked\n" * 2
        assert job.returncode == 75
        assert "script.py FAILED" not in error


@pytest.mark.parametrize(("status", "reports"), [(2, True), pytest.param(75, False, marks=pytest.mark.long)])
def test_the_launcher_ends_with_the_status_of_its_ranks_and_reports_errors_only(
    tmp_path: Path, status: int, reports: bool
) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.exit({status})")
    done = launched("--standalone", "--nproc-per-node", "2", str(script))
    assert done.returncode == status
    assert ("script.py FAILED" in done.stderr) == reports, done.stderr


def test_a_host_that_does_not_reach_the_first_one_ends_with_a_sentence() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{unused.getsockname()[1]}"
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-conf", "is_host=0,read_timeout=1"]
        done = launched("--nnodes", "2", *meeting, "script.py")
    assert done.returncode == ExitStatus.LOST_RANK
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "error: the hosts do not meet, or the first one is lost (The connection to the C10d store has failed. See "
        "inner exception for details); start all of them again. [STEM-RANK]"
    )
