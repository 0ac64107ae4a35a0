"""A rank that hangs or has stopped is named."""

import os
import signal
import time
from pathlib import Path

import pytest

from stem_torchrec.runtime.exit_status import ExitStatus
from stem_torchrec.runtime.hang_detection import collective_timeout
from stem_torchrec.runtime.hang_verdict import Beat, Watcher, report_interval

from small_runs import start


def test_no_rank_is_named_while_all_make_progress() -> None:
    watcher = Watcher(10)
    for now in range(100):
        assert watcher.verdict({rank: Beat(now, now, "making a training step") for rank in range(3)}, now=now) is None


def test_a_rank_that_has_stopped_is_named() -> None:
    watcher = Watcher(10)
    for now in range(40):
        beats = {
            0: Beat(now, min(now, 21), "making a training step"),
            1: Beat(min(now, 20), min(now, 20), "reading a batch"),
        }
        sentence = watcher.verdict(beats, now=now)
        if sentence:
            break
    assert now == 31
    assert sentence is not None
    assert sentence.startswith("rank 1 has stopped: for 11 s it has been reading a batch; all ranks end")


def test_the_rank_that_others_wait_for_is_named() -> None:
    """All processes live but none makes progress: the others wait in a collective that rank 2 has not begun."""
    watcher = Watcher(10)
    for now in range(40):
        beats = {rank: Beat(now, min(now, 21), "making a training step") for rank in (0, 1, 3)}
        beats[2] = Beat(now, min(now, 20), "reading a batch of the training split")
        sentence = watcher.verdict(beats, now=now)
        if sentence:
            break
    assert sentence is not None
    assert sentence.startswith("rank 2 hangs: for 13 s it has been reading a batch of the training split;")


def test_of_ranks_with_equal_progress_the_one_that_does_not_wait_is_named() -> None:
    watcher = Watcher(10)
    for now in range(40):
        beats = {rank: Beat(now, 7, "making a training step", "distributed/comm_ops.py:9", True) for rank in (0, 2)}
        beats[1] = Beat(now, 7, "making a training step", "models/stem.py:5", False)
        sentence = watcher.verdict(beats, now=now)
        if sentence:
            break
    assert sentence is not None
    assert "rank 1 hangs: for 13 s it has been making a training step at models/stem.py:5; all ranks end" in sentence


@pytest.mark.parametrize("timeout", [4, 86_400])
def test_a_rank_that_hangs_is_named_before_the_collectives_of_the_others_fail(timeout: float) -> None:
    """Rank 1 hangs at 0, when rank 0 begins to wait for it."""
    watcher, interval = Watcher(timeout), report_interval(timeout)
    # At the latest rank 1 reports an interval later, and rank 0 reads the report another interval later.
    count, now, sentence = 0, 2 * interval, None
    while sentence is None:
        reports = {0: Beat(count, 8, "making a training step", is_waiting=True), 1: Beat(count, 7, "reading a batch")}
        sentence = watcher.verdict(reports, now=now)
        count, now = count + 1, now + interval
    assert sentence.startswith("rank 1 hangs: ")
    # Now it is an interval after the verdict, and the others have read it.
    assert now < collective_timeout(timeout)


def test_a_rank_that_waits_long_for_one_that_makes_progress_is_not_named() -> None:
    watcher = Watcher(10)
    for now in range(100):
        waiting = Beat(now, 50, "making a training step", "distributed/comm_ops.py:9", True)
        sentence = watcher.verdict({0: waiting, 1: Beat(now, min(now // 2, 25), "reading a batch")}, now=now)
        if sentence:
            break
    # Rank 1 made progress until 50.
    assert now == 63
    assert sentence is not None
    assert sentence.startswith("rank 1 hangs: for 13 s it has been reading a batch")


def test_without_the_reports_of_all_no_rank_is_named_for_waiting() -> None:
    watcher = Watcher(10, sees_all_ranks=False)
    for now in range(100):
        assert watcher.verdict({0: Beat(now, min(now, 5), "making a training step")}, now=now) is None


@pytest.mark.parametrize(
    ("stopped", "sentence"),
    [
        # The fast tier has it in test_quick_commands.py.
        pytest.param(1, "error: rank 1 has stopped: for ", marks=pytest.mark.long),
        # It serves the store through which the other rank would learn of it.
        pytest.param(
            0,
            "error: the store of the ranks, which rank 0 or the launcher serves, has not answered for ",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_stopped_rank_ends_the_others_with_a_sentence(tmp_path: Path, stopped: int, sentence: str) -> None:
    run = start(tmp_path / "run", "--train.epochs", "500", "--train.timeout", "4", ranks=2)
    run.wait_for("step 10  ")
    run.send(signal.SIGSTOP, stopped)
    assert run.processes[1 - stopped].wait(60) == ExitStatus.LOST_RANK
    run.processes[stopped].kill()
    _, output = run.end()
    assert sentence in output
    assert output.count("error:") == 1


def test_a_rank_that_loses_another_ends_with_a_sentence(tmp_path: Path) -> None:
    run = start(tmp_path / "run", "--train.epochs", "500", ranks=2)
    run.wait_for("step 10  ")
    run.send(signal.SIGKILL, 0)
    statuses, output = run.end(60)
    assert statuses == [-signal.SIGKILL, ExitStatus.LOST_RANK]
    assert "error: rank 1 has lost another rank while it was " in output
    assert "Traceback" not in output


def workers_of(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    children = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for child in " ".join(children).split()]


def wait_until_ended(pids: list[int]) -> None:
    """Fails if one of the processes still runs after 10 s; one that nobody has waited for is a zombie, Z."""
    deadline = time.monotonic() + 10
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat")
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline, f"process {pid} still runs"
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (signal.SIGKILL, "error: a reader process (--data.num-workers) was lost ("),
        pytest.param(signal.SIGSTOP, "error: rank 0 hangs: for ", marks=pytest.mark.long),
    ],
)
def test_a_single_rank_that_waits_for_a_worker_in_vain_ends_with_a_sentence(
    tmp_path: Path, number: signal.Signals, sentence: str
) -> None:
    run = start(tmp_path / "run", "--train.epochs", "500", "--train.timeout", "8", "--data.num-workers", "1")
    run.wait_for("step 5  ")
    workers = workers_of(run.processes[0].pid)
    for worker in workers:
        os.kill(worker, number)
    statuses, output = run.end(60)
    assert statuses == [ExitStatus.LOST_RANK]
    assert sentence in output
    assert "Traceback" not in output
    wait_until_ended(workers)
