"""Runs in an object store: a server of the S3 protocol on this machine holds log, run folder and results."""

import json
import multiprocessing
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs

from stem_torchrec.checkpoints.folder import complete_steps
from stem_torchrec.checkpoints.weights import find_weights
from stem_torchrec.runtime.errors import UnwritableError, UserError
from stem_torchrec.runtime.file_systems import g_pathmgr
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.owner_file import this_process, write_owner
from stem_torchrec.runtime.paths import check_writable, move, remove_tree, write_text
from stem_torchrec.runtime.store_path import StorePath, path_of

from recovery.train_runs import differences
from small_runs import run_script, start
from stores import BUCKET, S3Server, download, s3_server, text_of

URL = f"s3://{BUCKET}"
OPTIONS = [
    *("--recipe", "tiny", "--data.batch-size", "64", "--data.eval-batch-size", "64"),
    *("--train.max-steps", "6", "--train.eval-every", "3", "--checkpoint.steps", "2", "--train.log-every", "1"),
]
EVALUATE = "stem_torchrec/evaluate.py"


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[S3Server, s3fs.S3FileSystem]]:
    with s3_server() as made:
        yield made


@pytest.fixture(scope="module")
def server(servers: tuple[S3Server, s3fs.S3FileSystem]) -> S3Server:
    return servers[0]


@pytest.fixture(scope="module")
def store(servers: tuple[S3Server, s3fs.S3FileSystem]) -> s3fs.S3FileSystem:
    return servers[1]


@pytest.fixture(scope="module")
def log(store: s3fs.S3FileSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local log, which the store has as well."""
    log = tmp_path_factory.mktemp("store") / "log"
    sizes = ("--train-rows", "600", "--valid-rows", "200", "--test-rows", "200", "--users", "50", "--items", "40")
    run_script("datasets/synthetic.py", "--out", log, *sizes)
    store.put(str(log), f"{BUCKET}/log", recursive=True)
    return log


def test_a_folder_of_a_store_has_one_owner(store: s3fs.S3FileSystem) -> None:
    lock = FolderLock()
    lock.take(f"{URL}/owned", other="--output-dir")
    other = replace(this_process("its token"), host="host-b", machine="b")
    write_owner(f"{URL}/owned", other)
    with pytest.raises(UserError, match="it was taken over by process"):
        lock.confirm()
    lock.release()
    with pytest.raises(UserError, match=f"{URL}/owned is in use by process .* on host-b"):
        FolderLock().take(f"{URL}/owned", other="--output-dir")
    with FolderLock(take_over=True) as lock:
        lock.take(f"{URL}/owned", other="--output-dir")
    assert not store.exists(f"{BUCKET}/owned/.owner.json")


@pytest.mark.long
def test_a_run_in_a_store_is_the_run_on_disk(store: s3fs.S3FileSystem, log: Path) -> None:
    folder = log.parent
    for place, data in ((folder / "run", log), (f"{URL}/run", f"{URL}/log")):
        run_script("stem_torchrec/train.py", *OPTIONS, "--data.path", data, "--output-dir", place, cwd=folder)
        results = ("--json", f"{place}.json", "--predictions", f"{place}_predictions")
        run_script(EVALUATE, "--run", place, "--split", "test", *results, cwd=folder)
    copy = download(store, f"{URL}/run", folder / "copy")
    (copy / "best" / "000002").rename(folder / "best")
    (copy / "best").rmdir()
    (folder / "best").rename(copy / "best")
    assert differences(copy, folder / "run") == []
    names = [{path.name for path in each.iterdir()} for each in (copy, folder / "run")]
    assert names[0] == names[1]
    assert len(list((copy / "tensorboard").iterdir())) == 1
    assert json.loads(store.cat(f"{BUCKET}/run.json")) == json.loads((folder / "run.json").read_text())
    download(store, f"{URL}/run_predictions", folder / "predictions")
    assert pq.read_table(folder / "predictions").equals(pq.read_table(folder / "run_predictions"))
    assert sorted(path.name for path in folder.iterdir() if ":" in path.name) == []
    for source in (f"{URL}/run", f"{URL}/run:best"):
        start_from = ("--data.path", f"{URL}/log", "--start-from", source, "--dry-run")
        output = run_script("stem_torchrec/train.py", *OPTIONS, *start_from, cwd=folder)
        assert f"starting from {URL}/run/" in output
    ended = run_script("stem_torchrec/train.py", *OPTIONS, "--data.path", f"{URL}/log", "--output-dir", f"{URL}/run")
    assert "has ended already" in ended
    for name in ("run/config.yaml", "run/best/x", "log/schema.json"):
        refused = run_script(EVALUATE, "--run", f"{URL}/run", "--json", f"{URL}/{name}", status=2)
        assert refused.count("\n") == 1


@pytest.mark.long
def test_a_run_in_a_store_that_is_killed_ends_as_one_that_was_not(store: s3fs.S3FileSystem, log: Path) -> None:
    whole = log.parent / "whole"
    statuses, output = start(whole, ranks=2).end()
    assert statuses == [0, 0], output
    run = StorePath(f"{URL}/killed")
    for moment, ranks in (("step 10  ", (0, 1)), ("step 28  paused", (0, 1)), ("step 60  ", (1,))):
        part = start(run, "--train.profile", ranks=2, cwd=log.parent)
        part.wait_for(moment)
        part.send(signal.SIGKILL, *ranks)
        for process in part.processes:
            process.kill()
        part.end()
    statuses, output = start(run, "--train.profile", ranks=2, cwd=log.parent).end()
    assert statuses == [0, 0], output
    assert re.search(r"resuming after step \d+ from s3://", output)
    copy = download(store, str(run), log.parent / "killed_copy")
    (best,) = (copy / "best").iterdir()
    best.rename(copy / "newest")
    (copy / "best").rmdir()
    (copy / "newest").rename(copy / "best")
    assert differences(copy, whole) == []
    names = {path.name for path in (copy / "profile").iterdir()}
    assert names == {"summary.txt", "rank_0.json.gz", "rank_1.json.gz"}


@pytest.mark.long
def test_a_store_that_refuses_for_a_time_does_not_end_a_training(server: S3Server, log: Path) -> None:
    folder = log.parent / "refused"
    run = start(folder, "--checkpoint.folder", f"{URL}/checkpoints", "--checkpoint.max-failures", "1000")
    run.wait_for("step 7  checkpoint written")
    server.refuses = True
    run.wait_for("cannot be written (")
    server.refuses = False
    statuses, output = run.end()
    assert statuses == [0], output
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["count/failed_checkpoints"] > 0
    assert lines[-1]["step"] in complete_steps(f"{URL}/checkpoints")


def test_a_file_appears_whole_or_not_at_all(store: s3fs.S3FileSystem) -> None:
    path = StorePath(f"{URL}/whole/file")

    def write(mode: str, content: str | bytes) -> None:
        with path.open(mode) as file:
            file.write(content)
            assert not path.exists()
            raise RuntimeError("a step fails")

    for mode, content in (("w", "text"), ("wb", b"bytes"), ("wb", bytes(60 * 2**20))):
        with pytest.raises(RuntimeError, match="a step fails"):
            write(mode, content)
        assert not path.exists()
    # Parts of a large file are not kept either.
    assert not store.list_multipart_uploads(BUCKET)
    write_text(path, "text")
    assert path.read_text() == "text"


def test_what_another_process_writes_is_seen_at_once(store: s3fs.S3FileSystem) -> None:
    folder = StorePath(f"{URL}/seen")
    assert (folder.exists(), folder.is_dir(), g_pathmgr.exists(f"{folder}/a")) == (False, False, False)
    store.pipe(f"{BUCKET}/seen/a", b"1")
    store.pipe(f"{BUCKET}/seen/below/b", b"2")
    store.pipe(f"{BUCKET}/seen/", b"")  # As some programs mark a folder.
    assert [path.name for path in folder.iterdir()] == ["a", "below"]
    assert ((folder / "a").is_file(), (folder / "below").is_dir(), folder.is_file()) == (True, True, False)
    store.rm_file(f"{BUCKET}/seen/a")
    assert not (folder / "a").exists()
    assert folder.with_name("seen") == folder
    assert (StorePath(URL).is_dir(), StorePath("s3://no-such-bucket").exists()) == (True, False)
    remove_tree(folder)
    assert not store.find(f"{BUCKET}/seen/below")


def test_a_file_is_moved_over_another(store: s3fs.S3FileSystem) -> None:
    for name in ("old", "new"):
        write_text(path_of(f"{URL}/moved/{name}"), name)
    move(f"{URL}/moved/new", f"{URL}/moved/old")
    assert store.find(f"{BUCKET}/moved") == [f"{BUCKET}/moved/old"]
    assert StorePath(f"{URL}/moved/old").read_text() == "new"


def test_the_newest_complete_weights_count(store: s3fs.S3FileSystem) -> None:
    best = StorePath(f"{URL}/weights/best")
    with pytest.raises(UserError, match=r"best holds no weights"):
        find_weights(best)
    for name in ("000009/.metadata", "000010/.metadata", "000011/__0_0.distcp"):
        store.pipe(f"{BUCKET}/weights/best/{name}", b"")
    assert find_weights(best) == best / "000010"


def test_a_forked_process_reads_too(store: s3fs.S3FileSystem) -> None:
    path = StorePath(f"{URL}/forked")
    write_text(path, "text")
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(text_of, (str(path),)) == "text"


def test_errors_of_a_store_name_the_path_and_no_bucket_is_made(
    store: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StorePath("s3://no-such-bucket/run")
    for act in (lambda: check_writable(folder), lambda: write_text(folder / "a", "text"), (folder / "a").read_text):
        with pytest.raises((OSError, UnwritableError), match=r"s3://no-such-bucket/run/"):
            act()
    assert store.ls("") == [BUCKET]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    path = StorePath(f"{URL}/log")
    for ask in (path.exists, path.is_file, path.is_dir, lambda: list(path.iterdir())):
        # Not an answer, which would be that there is nothing.
        with pytest.raises(OSError, match=r"Unable to locate credentials.*s3://bucket/log"):
            ask()
    s3fs.S3FileSystem.clear_instance_cache()
