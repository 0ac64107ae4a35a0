"""Runs that are killed and started again end as one that never was."""

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest

from stem_torchrec.runtime.errors import RESUME_STATUS

from recovery.train_runs import differences
from small_runs import start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the synthetic log is made once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A run of two ranks without interruption."""
    statuses, said = start(folder / "whole", ranks=2).end()
    assert statuses == [0, 0], said
    return folder / "whole"


def test_a_run_killed_at_any_moment_ends_as_one_that_never_was(folder: Path, whole: Path) -> None:
    """In a step, in evaluation, while a checkpoint is written; one rank or all."""
    run = folder / "killed"
    for moment, ranks in (("step 10  ", (0, 1)), ("step 20  ", (1,)), ("step 28  paused", (0, 1)), ("step 60  ", (0,))):
        part = start(run, ranks=2)
        part.wait_for(moment)
        part.send(signal.SIGKILL, *ranks)
        for rank in set(range(2)) - set(ranks):
            part.processes[rank].kill()  # As a launcher does when one of its ranks has died.
        part.end()
    statuses, said = start(run, ranks=2).end()
    assert statuses == [0, 0], said
    assert "resuming after step" in said
    assert differences(run, whole) == []


def test_torchrun_starts_a_run_again_when_a_worker_dies(folder: Path, whole: Path) -> None:
    run = folder / "restarted"
    job = start(run, launcher=["--nproc-per-node", "2", "--max-restarts", "1"])
    job.wait_for("step 25  ")
    workers = Path(f"/proc/{job.processes[0].pid}/task/{job.processes[0].pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGKILL)
    statuses, said = job.end()
    assert statuses == [0], said
    assert "resuming after step" in said
    assert differences(run, whole) == []


def test_a_full_disk_stops_no_training_and_loses_no_line(folder: Path, whole: Path) -> None:
    run = folder / "full"
    part = start(run, "--checkpoint.max-failures", "1000", ranks=2)
    part.wait_for("step 10  ")
    # As on a full disk, no file grows any more.
    limits = [
        resource.prlimit(each.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY)) for each in part.processes
    ]
    part.wait_for(f"{run}/best cannot be written (")
    part.wait_for("metrics.jsonl cannot be written (")
    for process, limit in zip(part.processes, limits, strict=True):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limit)
    statuses, said = part.end()
    assert statuses == [0, 0], said
    found = differences(run, whole)
    assert all("count/failed" in each for each in found), found
    counts = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert counts["count/failed_checkpoints"] > 0
    assert counts["count/failed_best_weights"] > 0


def test_a_run_that_is_asked_to_end_says_so_and_goes_on(folder: Path, whole: Path) -> None:
    run = folder / "terminated"
    for moment, number, in_evaluation in (("step 5  ", signal.SIGTERM, False), ("step 40  ", signal.SIGINT, True)):
        # One rank is enough; a launcher's signal reaches its reader as well.
        part = start(run, "--data.num-workers", "0" if in_evaluation else "1", ranks=2)
        part.wait_for(moment)
        os.killpg(part.processes[1].pid, number)
        statuses, said = part.end(60)
        assert statuses == [RESUME_STATUS] * 2, said
        assert "Traceback" not in said
        assert "checkpoint written" in said
        newest = max((run / "checkpoints").glob("step-*/progress.json"))
        assert json.loads(newest.read_text())["evaluate"] == in_evaluation
    statuses, said = start(run, ranks=2).end()
    assert statuses == [0, 0], said
    assert differences(run, whole) == []
    statuses, said = start(run, ranks=2).end()
    assert statuses == [0, 0], said
    assert "has ended already" in said


def test_ctrl_c_twice_ends_at_once(folder: Path) -> None:
    part = start(folder / "twice", "--train.epochs", "500")
    part.wait_for("step 5  ")
    part.send(signal.SIGINT)
    part.send(signal.SIGINT)
    statuses, _ = part.end(20)
    assert statuses in ([RESUME_STATUS], [128 + signal.SIGINT])


def test_other_ranks_plans_and_layouts_go_on(folder: Path) -> None:
    first = folder / "elastic"
    part = start(first, "--sparse.name", "adagrad", ranks=2)
    part.wait_for("step 25  ")
    part.send(signal.SIGTERM, 0)
    statuses, said = part.end(60)
    assert statuses == [RESUME_STATUS] * 2, said
    ended = {}
    for name, ranks, options in (
        ("packed", 1, ["--data.batch-size", "256", "--model.layout", "packed"]),
        ("columns", 2, ["--sharding.type", "column_wise"]),
    ):
        shutil.copytree(first, folder / name)
        statuses, said = start(folder / name, "--sparse.name", "adagrad", *options, ranks=ranks).end()
        assert statuses == [0] * ranks, said
        ended[name] = json.loads((folder / name / "metrics.json").read_text())["valid"]
    for metrics in ended.values():
        for task, values in metrics.items():
            assert values["logloss"] == pytest.approx(ended["columns"][task]["logloss"], rel=0.02)


def test_a_damaged_checkpoint_is_passed_over_and_another_run_s_is_refused(folder: Path, whole: Path) -> None:
    run = folder / "damaged"
    part = start(run, "--train.max-steps", "30")
    assert part.end()[0] == [0]
    (run / "metrics.json").unlink()
    broken = next((run / "checkpoints/step-000000028").glob("*.distcp"))
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    statuses, said = start(run, "--train.max-steps", "30").end()
    assert statuses == [0], said
    assert "step-000000028 cannot be read" in said
    assert "resuming after step 21" in said
    (run / "metrics.json").unlink()
    statuses, said = start(
        run, "--train.max-steps", "30", "--model.expert-hidden", "8", "--resume", str(run / "checkpoints")
    ).end()
    assert statuses == [2]
    assert "is another run's: model.expert_hidden is [16] there and [8] here" in said
    assert "Traceback" not in said
