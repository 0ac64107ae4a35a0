"""Commands that a signal or a full disk ends: one line, their status, and nothing half written or left running."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stem_torchrec.config.yaml_text import to_yaml
from stem_torchrec.data.files import Columns
from stem_torchrec.metrics.predictions import PredictionsFile
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.exit_status import ExitStatus
from stem_torchrec.runtime.whole_file import whole_file
from stem_torchrec.tuning.study import StudyFile

from common.output import make_folder, write_table
from common.processes import ROOT
from preparations import spec_with, write_files

DATA = Path(__file__).parent / "data"
OUTPUTS = ("--predictions", "out", "--json", "out.json")
LIMIT = 16_384
"""Bytes of the largest file in these tests; the system refuses what goes beyond it, as a full disk does."""


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))


@pytest.fixture
def small_files():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_files()
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def start(*line: str | Path, cwd: Path, **options) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / line[0]), *map(str, line[1:])]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, text=True, start_new_session=True, **pipes, **options)


def wait_until(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def in_session(process: "subprocess.Popen[str]") -> list[int]:
    """The processes of its session."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    alive = []
    for pid in pids:
        try:
            alive += [pid] * (os.getsid(pid) == process.pid)
        except ProcessLookupError:
            continue
    return alive


def test_ctrl_c_leaves_nothing_of_a_synthetic_log(tmp_path: Path) -> None:
    line = ("datasets/synthetic.py", "--out", tmp_path / "log", "--train-rows", "100000000")
    with start(*line, cwd=tmp_path) as process:
        wait_until(lambda: any(tmp_path.iterdir()), process)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert error == "error: stopped by SIGINT before it was complete.\n"
    assert not (tmp_path / "log").exists()
    assert not list(tmp_path.glob(".log*/**/*.parquet"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "begun", "kept"),
    [(signal.SIGINT, "work/*rows*", ""), (signal.SIGTERM, "new/.train.new/*", "work/rows.parquet")],
)
def test_a_signal_ends_a_preparation_in_a_query_and_the_next_call_goes_on(
    number: signal.Signals, begun: str, kept: str, tmp_path: Path
) -> None:
    rows = "".join(f"{i * 7919 % 50021},{i % 3 + 1},{i % 7 % 2}\n" for i in range(800_000))
    write_files(tmp_path, {"log.csv": f"user,day,click\n{rows}", "spec.yaml": to_yaml(spec_with(order="shuffle"))})
    line = ("stem_torchrec/prepare.py", "spec.yaml", "--out", "made", "--threads", "1", "--no-report")
    with start(*line, cwd=tmp_path) as process:
        wait_until(lambda: any((tmp_path / ".made.new").glob(begun)), process)
        os.killpg(process.pid, number)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (128 + number, f"error: stopped by {number.name} before it was complete.\n")
    assert not (tmp_path / "made").exists()
    assert not kept or (tmp_path / ".made.new" / kept).exists()
    with start(*line, cwd=tmp_path) as process:
        _, error = process.communicate(timeout=120)
    assert (process.returncode, error) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "made", "spec.yaml"]
    assert [pq.read_table(tmp_path / "made" / split).num_rows for split in ("train", "valid")] == [533_334, 266_666]


def test_a_synthetic_log_on_a_full_disk_is_refused_with_its_name(tmp_path: Path) -> None:
    line = ("datasets/synthetic.py", "--out", tmp_path / "log", "--train-rows", "20000")
    with start(*line, cwd=tmp_path, preexec_fn=limit_files) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == ExitStatus.UNWRITABLE
    assert error.startswith(f"error: {tmp_path / 'log'}")
    assert "File too large" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "log").exists()


def test_predictions_on_a_full_disk_leave_no_file(tmp_path: Path, small_files: None) -> None:
    columns = Columns(sparse={}, dense=(), labels=("like",), group=None)
    rows = 100_000
    with (
        pytest.raises(OSError, match=r"part-00000\.parquet"),
        PredictionsFile(str(tmp_path), columns, rank=0) as file,
    ):
        file.write(torch.arange(rows), None, torch.zeros(rows, 1), torch.randn(rows, 1))
    assert not list(tmp_path.iterdir())


def test_a_report_on_a_full_disk_leaves_the_earlier_one(tmp_path: Path, small_files: None) -> None:
    file = tmp_path / "report.parquet"
    write_table(file, pa.table({"x": [1]}))
    before = file.read_bytes()
    with pytest.raises(OSError, match=r"report\.parquet"):
        write_table(file, pa.table({"x": torch.randn(10_000).numpy()}))
    with pytest.raises(OSError, match=r"report\.parquet"), whole_file(file) as new:
        new.write_bytes(bytes(2 * LIMIT))
    assert [path.name for path in tmp_path.iterdir()] == ["report.parquet"]
    assert file.read_bytes() == before


def test_the_file_of_a_study_on_a_full_disk_keeps_whole_lines(tmp_path: Path, small_files: None) -> None:
    file, line = tmp_path / "study.log", {"op_code": 0, "text": "x" * 900}
    study = StudyFile(file)

    def fill() -> None:
        for _ in range(LIMIT // 900):
            study.append_logs([line])

    with pytest.raises(OSError, match=r"study\.log"):
        fill()
    assert LIMIT - 1100 < file.stat().st_size < LIMIT
    kept = list(study.read_logs(0))
    assert kept == [line] * len(kept)


TRAIN = ("--recipe", "tiny", "--data.path", DATA / "log", "--data.batch-size", "4", "--model.expert-hidden", "64", "64")


@pytest.mark.long
@pytest.mark.parametrize(
    "line",
    [
        ("stem_torchrec/train.py", *TRAIN, "--output-dir", "out"),
        ("stem_torchrec/train.py", *TRAIN, "--output-dir", "out", "--train.profile", "--train.epochs", "6"),
        ("stem_torchrec/tune.py", *TRAIN, "--trials", "2", "--out", "out"),
        ("stem_torchrec/compare.py", *TRAIN, "--models", "stem,single_task", "--seeds", "0", "--out", "out"),
        ("stem_torchrec/convert.py", "--run", DATA / "run_format_1", "--out", "out"),
    ],
)
def test_a_command_that_a_full_disk_has_ended_goes_on_when_there_is_room(line: tuple[str, ...], tmp_path: Path) -> None:
    with start(*line, cwd=tmp_path, preexec_fn=limit_files) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == ExitStatus.UNWRITABLE, error
    assert next(line for line in error.splitlines() if not line.startswith("note: ")).startswith("error: ")
    assert "Traceback" not in error
    with start(*line, cwd=tmp_path) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == ExitStatus.OK, error
    assert not [path for path in (tmp_path / "out").rglob("*") if ".new" in path.name or path.name == ".owner.json"]


def test_a_benchmark_refuses_the_folder_of_a_log_before_it_measures(tmp_path: Path) -> None:
    (tmp_path / "schema.json").touch()
    with pytest.raises(UserError, match="holds a run or a log; give another folder"):
        make_folder(str(tmp_path))


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGINT, ("stem_torchrec/evaluate.py", "--run", "run", "--data.path", DATA / "log", *OUTPUTS)),
        (signal.SIGTERM, ("stem_torchrec/convert.py", "--run", "run", "--out", "out")),
        (signal.SIGINT, ("benchmarks/metrics.py", "--rows", "30000000", "--ranks", "2", "--out", "out")),
        (signal.SIGTERM, ("benchmarks/metrics.py", "--rows", "30000000", "--ranks", "2", "--out", "out")),
        (signal.SIGINT, ("benchmarks/throughput.py", "--cases", "rows", "--out", "out")),
        (signal.SIGHUP, ("benchmarks/faults.py", "--kills", "3", "--out", "out")),
        (signal.SIGHUP, ("benchmarks/plan.py", "--tables", ROOT / "benchmarks/tables/small.yaml", "--out", "out")),
    ],
)
def test_a_signal_ends_a_command_and_what_it_started(
    number: signal.Signals, line: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "run").symlink_to(DATA / "run_format_1")
    for seconds in (2, 6, 10):
        with start(*line, cwd=tmp_path) as process:
            time.sleep(seconds)
            if process.poll() is not None:
                break  # It was faster.
            os.killpg(process.pid, number)
            _, error = process.communicate(timeout=60)
        # It was done. An interpreter that is on its way out ends by the signal, which a shell shows as 128 + number.
        if not error:
            assert process.returncode in (0, -number, 128 + number)
            break
        assert process.returncode == 128 + number
        assert error.splitlines()[-1] == f"error: stopped by {number.name} before it was complete."
        assert "Traceback" not in error
        assert not in_session(process)
        assert not list(tmp_path.glob("out/part-*.parquet")) + list(tmp_path.glob("out.json"))
