"""A run that is killed, stopped or short of disk resumes, and ends to the bit as an uninterrupted one."""

import json
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest

from stem_torchrec.runtime.exit_status import ExitStatus

from recovery.train_runs import differences
from small_runs import start

RESUMED = re.compile(r"resuming after step (\d+) from")
"""The line of a run that resumes from a checkpoint."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs, which share a synthetic log in it."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An uninterrupted run of two ranks."""
    statuses, output = start(folder / "whole", ranks=2).end()
    assert statuses == [0, 0], output
    return folder / "whole"


@pytest.mark.long
def test_a_run_killed_at_any_moment_ends_as_an_uninterrupted_one(folder: Path, whole: Path) -> None:
    """Kills one rank or all in a step, in an evaluation and while a checkpoint is written."""
    run = folder / "killed"
    for moment, ranks in (("step 10  ", (0, 1)), ("step 20  ", (1,)), ("step 28  paused", (0, 1)), ("step 60  ", (0,))):
        part = start(run, ranks=2)
        part.wait_for(moment)
        part.send(signal.SIGKILL, *ranks)
        for rank in set(range(2)) - set(ranks):
            part.processes[rank].kill()  # As a launcher does when one of its ranks has died.
        part.end()
    statuses, output = start(run, ranks=2).end()
    assert statuses == [0, 0], output
    assert RESUMED.search(output)
    assert differences(run, whole) == []


@pytest.mark.long
def test_torchrun_restarts_a_run_when_a_worker_dies(folder: Path, whole: Path) -> None:
    run = folder / "restarted"
    job = start(run, launcher=["--nproc-per-node", "2", "--max-restarts", "1"])
    job.wait_for("step 25  ")
    workers = Path(f"/proc/{job.processes[0].pid}/task/{job.processes[0].pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGKILL)
    statuses, output = job.end()
    assert statuses == [0], output
    assert RESUMED.search(output)
    assert differences(run, whole) == []


@pytest.mark.long
def test_a_full_disk_neither_ends_the_training_nor_loses_a_line(folder: Path, whole: Path) -> None:
    run = folder / "full"
    part = start(run, "--checkpoint.max-failures", "1000", ranks=2)
    part.wait_for("step 10  ")
    # As on a full disk, no file can grow.
    limits = [
        resource.prlimit(each.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY)) for each in part.processes
    ]
    part.wait_for(f"{run}/best cannot be written (")
    part.wait_for("metrics.jsonl cannot be written (")
    for process, limit in zip(part.processes, limits, strict=True):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limit)
    statuses, output = part.end()
    assert statuses == [0, 0], output
    differing = differences(run, whole)
    assert all("count/failed" in each for each in differing), differing
    counts = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert counts["count/failed_checkpoints"] > 0
    assert counts["count/failed_best_weights"] > 0


@pytest.mark.long
def test_a_signal_ends_a_run_with_a_checkpoint_and_it_resumes(folder: Path, whole: Path) -> None:
    run = folder / "terminated"
    for moment, number, in_evaluation in (("step 5  ", signal.SIGTERM, False), ("step 40  ", signal.SIGINT, True)):
        # One rank is enough. The signal of a launcher also reaches the processes that read for the rank.
        part = start(run, "--data.num-workers", "0" if in_evaluation else "1", ranks=2)
        part.wait_for(moment)
        os.killpg(part.processes[1].pid, number)
        statuses, output = part.end(60)
        assert statuses == [ExitStatus.RESUME] * 2, output
        assert "Traceback" not in output
        assert "checkpoint written" in output
        newest = max((run / "checkpoints").glob("step-*/progress.json"))
        assert json.loads(newest.read_text())["evaluate"] == in_evaluation
    statuses, output = start(run, ranks=2).end()
    assert statuses == [0, 0], output
    assert differences(run, whole) == []
    statuses, output = start(run, ranks=2).end()
    assert statuses == [0, 0], output
    assert "already" in output
    assert not RESUMED.search(output)


def test_a_ctrl_c_that_reaches_a_run_twice_ends_it_with_a_checkpoint(folder: Path) -> None:
    part = start(folder / "twice", "--train.epochs", "500")
    part.wait_for("step 5  ")
    part.send(signal.SIGINT)
    part.send(signal.SIGINT)
    statuses, output = part.end(20)
    assert statuses == [ExitStatus.RESUME], output
    assert "checkpoint written" in output


@pytest.mark.long
def test_a_run_resumes_on_other_ranks_plans_and_layouts(folder: Path) -> None:
    first = folder / "elastic"
    part = start(first, "--sparse.name", "adagrad", ranks=2)
    part.wait_for("step 25  ")
    part.send(signal.SIGTERM, 0)
    statuses, output = part.end(60)
    assert statuses == [ExitStatus.RESUME] * 2, output
    ended = {}
    for name, ranks, options in (
        ("packed", 1, ["--data.batch-size", "256", "--model.layout", "packed"]),
        ("columns", 2, ["--sharding.type", "column_wise"]),
    ):
        shutil.copytree(first, folder / name)
        statuses, output = start(folder / name, "--sparse.name", "adagrad", *options, ranks=ranks).end()
        assert statuses == [0] * ranks, output
        ended[name] = json.loads((folder / name / "metrics.json").read_text())["valid"]
    for metrics in ended.values():
        for task, values in metrics.items():
            assert values["logloss"] == pytest.approx(ended["columns"][task]["logloss"], rel=0.02)


def test_a_damaged_checkpoint_is_skipped_and_one_of_another_run_is_refused(folder: Path, whole: Path) -> None:
    run = folder / "damaged"
    part = start(run, "--train.max-steps", "30")
    assert part.end()[0] == [0]
    (run / "metrics.json").unlink()
    broken = next((run / "checkpoints/step-000000030").glob("*.distcp"))
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    statuses, output = start(run, "--train.max-steps", "30").end()
    assert statuses == [0], output
    assert "step-000000030 cannot be read" in output
    assert RESUMED.findall(output) == ["28"]
    (run / "metrics.json").unlink()
    statuses, output = start(
        run, "--train.max-steps", "30", "--model.expert-hidden", "8", "--resume", str(run / "checkpoints")
    ).end()
    assert statuses == [2]
    assert "model.expert_hidden was [16] and is [8]" in output
    assert "Traceback" not in output
