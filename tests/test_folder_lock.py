"""A folder has one owner at a time, whatever happens to the processes."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from stem_torchrec.runtime import folder_lock
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.owner_file import OWNER_FILE, Owner, started_at, this_process, write_owner

from distributed import forkserver


def own(folder: str, answers: Connection, take_over: bool) -> None:
    """Owns a folder until it is told to end; answers with the error where it cannot."""
    with FolderLock(take_over=take_over) as lock:
        try:
            lock.take(folder, other="--output-dir")
            answers.send("owned")
            answers.recv()
            lock.confirm()
            answers.send("ended")
        except UserError as error:
            answers.send(str(error))


@contextmanager
def process_that_owns(folder: Path, *, take_over: bool = False) -> Iterator[tuple[BaseProcess, Connection]]:
    own_end, its_end = forkserver().Pipe()
    process = forkserver().Process(target=own, args=(str(folder), its_end, take_over))
    process.start()
    its_end.close()
    try:
        yield process, own_end
    finally:
        process.kill()
        process.join()


def take(folder: Path, **options: bool) -> FolderLock:
    lock = FolderLock(**options)
    lock.take(str(folder), other="--output-dir")
    return lock


def owner_elsewhere(folder: Path, *, silent: float, launch: str = "") -> None:
    """As a process of another machine that has not renewed its lease for `silent` seconds."""
    renewed = (datetime.now(UTC) - timedelta(seconds=silent)).isoformat(timespec="seconds")
    owner = replace(this_process("its token"), host="host-b", machine="b", pid=7, launch=launch, renewed=renewed)
    folder.mkdir(exist_ok=True)
    write_owner(str(folder), owner)


def test_a_second_process_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with process_that_owns(tmp_path) as (process, answers):
        assert answers.recv() == "owned"
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(
            UserError, match=f"{tmp_path} is in use by process {process.pid} on .* since 20.* UTC, last"
        ):
            take(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        answers.send("end")
        assert answers.recv() == "ended"
        process.join()
        assert list(tmp_path.iterdir()) == []
    take(tmp_path).release()


def test_a_killed_process_does_not_block_the_next_one(tmp_path: Path) -> None:
    with process_that_owns(tmp_path) as (process, answers):
        assert answers.recv() == "owned"
        process.kill()
        process.join()
        take(tmp_path).release()


def test_a_process_that_has_ended_but_was_not_waited_for_owns_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        write_owner(
            str(tmp_path), replace(this_process("token"), pid=process.pid, started=started_at(process.pid) or "")
        )
        with pytest.raises(UserError, match=f"in use by process {process.pid}"):
            take(tmp_path)
        process.kill()
        while "Z" not in Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2]:
            time.sleep(0.01)
        take(tmp_path).release()


def test_a_process_with_the_number_of_an_ended_one_does_not_own_its_folder(tmp_path: Path) -> None:
    write_owner(str(tmp_path), replace(this_process("token"), pid=os.getppid(), started="1"))
    take(tmp_path).release()


def test_of_many_processes_that_start_at_once_one_owns_the_folder(tmp_path: Path) -> None:
    with contextmanager(all_at_once)(tmp_path) as answers:
        assert sorted(answer == "owned" for answer in answers) == [False] * 5 + [True]


def all_at_once(folder: Path) -> Iterator[list[str]]:
    ready = forkserver().Barrier(6)
    pipes = [forkserver().Pipe() for _ in range(6)]
    processes = [forkserver().Process(target=own_when_ready, args=(str(folder), theirs, ready)) for _, theirs in pipes]
    for process in processes:
        process.start()
    yield [answers.recv() for answers, _ in pipes]
    for process in processes:
        process.kill()
        process.join()


def own_when_ready(folder: str, answers: Connection, ready: Callable) -> None:
    ready.wait()
    own(folder, answers, False)


def test_an_owner_that_lost_its_folder_ends_before_it_writes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "_LOOKS_EVERY", 0.05)
    lock = take(tmp_path)
    assert not lock.lost
    with process_that_owns(tmp_path, take_over=True) as (process, answers):
        assert answers.recv() == "owned"
        with pytest.raises(UserError, match=f"{tmp_path} is no longer this process's: it was taken over by process"):
            lock.confirm()
        deadline = time.monotonic() + 10
        while not lock.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.lost
        # Giving back does not touch the folder of the new owner.
        lock.release()
        assert json.loads((tmp_path / OWNER_FILE).read_text())["pid"] == process.pid


def test_an_owner_on_another_machine_counts_as_running_for_five_minutes(tmp_path: Path) -> None:
    owner_elsewhere(tmp_path, silent=280)
    with pytest.raises(UserError, match=r"process 7 on host-b .* ended 5 minutes after .* add --take-over") as error:
        take(tmp_path)
    assert "\n" not in str(error.value)
    owner_elsewhere(tmp_path, silent=310)
    take(tmp_path).release()
    owner_elsewhere(tmp_path, silent=10)
    take(tmp_path, take_over=True).release()


def test_ranks_that_a_launcher_restarts_on_another_machine_take_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner_elsewhere(tmp_path, silent=10, launch="job-17")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-18")
    with pytest.raises(UserError, match="in use"):
        take(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-17")
    take(tmp_path).release()
    owner_elsewhere(tmp_path, silent=10)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UserError, match="in use"):
        take(tmp_path)


def test_a_lease_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "_LOOKS_EVERY", 0.02)
    monkeypatch.setattr(folder_lock, "RENEWED_EVERY", 0.0)
    with take(tmp_path):
        file = tmp_path / OWNER_FILE
        first = json.loads(file.read_text())
        deadline = time.monotonic() + 10
        while json.loads(file.read_text())["renewed"] == first["renewed"] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert json.loads(file.read_text())["renewed"] > first["renewed"]
        assert json.loads(file.read_text())["since"] == first["since"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "\x00"])
def test_a_damaged_owner_file_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / OWNER_FILE).write_text(text)
    with pytest.raises(UserError, match=f"{OWNER_FILE} names no owner .* delete it"):
        take(tmp_path)


def test_an_owner_file_with_a_field_of_another_type_is_one_sentence(tmp_path: Path) -> None:
    owner: Owner = this_process("token")
    (tmp_path / OWNER_FILE).write_text(json.dumps(asdict(owner) | {"pid": "1"}))
    with pytest.raises(UserError, match="names no owner"):
        take(tmp_path)


def test_the_same_process_takes_its_folder_again(tmp_path: Path) -> None:
    given_up = take(tmp_path)
    lock = take(tmp_path)
    given_up.release()
    lock.confirm()
    lock.release()
    assert list(tmp_path.iterdir()) == []
