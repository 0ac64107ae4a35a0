"""The results of an evaluation replace nothing but earlier results."""

import errno
import json
import os
import re
import shutil
import stat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.runtime.errors import UnwritableError, UserError
from stem_torchrec.runtime.exit_status import ExitStatus
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.paths import move, write_text
from stem_torchrec.training.evaluation_outputs import prepare_outputs, write_results

from small_runs import run_script

DATA = Path(__file__).parent / "data"
METRICS = {"test": {"like": {"auc": 0.8, "gauc": None}}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "a"
    (run / "best").mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\n")
    (run / "metrics.json").write_text(json.dumps({"step": 2, "valid": METRICS["test"], "format": 1}))
    (run / "metrics.jsonl").touch()
    return run


def refusal(run: Path, *, metrics: str | None = None, predictions: str | None = None) -> str:
    before = sorted(run.rglob("*"))
    with pytest.raises(UserError) as error:
        prepare_outputs(str(run), FolderLock(), metrics=metrics, predictions=predictions)
    assert sorted(run.rglob("*")) == before
    return str(error.value)


def test_no_file_of_the_run_is_replaced(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, away = run.parent / "link", run.parent / "away"
    link.symlink_to(run)
    away.mkdir()
    (run / "checkpoints").symlink_to(away)
    monkeypatch.chdir(run)
    names = ("config.yaml", "metrics.json", "metrics.jsonl", "plan.json", "best", "best/.metadata", "best.old/a", "")
    for name in names:
        for folder in (str(run), str(link), f"{run}/../{run.name}", "."):
            for option in ("metrics", "predictions"):
                message = refusal(run, **{option: f"{folder}/{name}"})
                assert message.endswith(f"is a part of the run {run} itself; give another.")
    for path in (away / "step-000000001", run / "checkpoints" / "x"):
        assert "is a part of the run" in refusal(run, predictions=str(path))
    prepare_outputs(str(run), FolderLock(), metrics=str(run / "test.json"), predictions=str(run / "predictions"))


def test_only_metrics_of_an_evaluation_are_replaced(run: Path, tmp_path: Path) -> None:
    log = tmp_path / "schema.json"
    contents = ('{"labels": ["a"]}', "[]", "null", "seed: 0", '{"test": {"like": 0.8}}', "\xff", "[" * 10_000)
    for content in contents:
        log.write_text(content, encoding="latin-1")
        assert refusal(run, metrics=str(log)).endswith("does not hold the metrics of an evaluation; give another.")
    log.write_text(json.dumps(METRICS) + " " * 2**20)
    assert "does not hold the metrics" in refusal(run, metrics=str(log))
    assert "does not hold the metrics" in refusal(
        run, metrics=str(run.parent / "a" / ".." / "a" / ".." / ".." / log.name)
    )
    for content in (json.dumps(METRICS), ""):
        log.write_text(content)
        prepare_outputs(str(run), FolderLock(), metrics=str(log), predictions=None)


def test_predictions_go_to_a_folder_of_their_own(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    prepare_outputs(str(run), FolderLock(), metrics=None, predictions=str(folder))
    assert not list(folder.iterdir())
    # An evaluation on more ranks was interrupted.
    (folder / "part-00003.parquet.new").touch()
    prepare_outputs(str(run), FolderLock(), metrics=None, predictions=str(folder))
    assert not list(folder.iterdir())
    (folder / "notes").touch()
    assert refusal(run, predictions=str(folder)) == f"{folder} holds other files; give another --predictions."
    (folder / "part-00000.parquet").touch()
    assert "holds predictions already" in refusal(run, predictions=str(folder))
    assert "is a folder; give a file" in refusal(run, metrics=str(folder), predictions=str(tmp_path / "new"))


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    fifo, folder, device, link = (tmp_path / name for name in ("fifo", "folder", "device", "link"))
    os.mkfifo(fifo)
    folder.mkdir()
    device.symlink_to("/dev/null")
    (tmp_path / "new").write_text("new")
    for path in (fifo, folder, device):
        with pytest.raises(UnwritableError, match="is not a regular file"):
            write_text(path, "text")
        with pytest.raises(OSError, match="is not a regular file"):
            move(str(tmp_path / "new"), str(path))
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    # What is written beside the file before it gets its name must not go through a FIFO either.
    os.mkfifo(tmp_path / ".new.file")
    with pytest.raises(UnwritableError, match="is not a regular file"):
        write_text(tmp_path / "file", "text")
    link.symlink_to(tmp_path / "results.json")
    write_results(str(link), METRICS)
    assert link.is_symlink()
    assert json.loads((tmp_path / "results.json").read_text()) == METRICS
    # In a folder of its own a command follows no link: it may lead to another of its files.
    write_text(link, "text")
    assert not link.is_symlink()
    assert json.loads((tmp_path / "results.json").read_text()) == METRICS


def test_a_disk_that_is_full_keeps_the_old_file_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.json"
    write_text(file, "old")

    def write_half(path: Path, text: str) -> int:
        path.write_bytes(text.encode()[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(UnwritableError, match=r"results.json cannot be written .*No space left"):
        write_text(file, "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert file.read_text() == "old"


def test_an_evaluation_that_one_rank_cannot_continue_writes_no_results(tmp_path: Path) -> None:
    shutil.copytree(DATA / "log", tmp_path / "log")
    (file,) = (tmp_path / "log/test").glob("*.parquet")
    table = pq.read_table(file)
    ids = [*table["item_id"].to_pylist()[:-1], 10**6]
    pq.write_table(
        table.set_column(table.schema.get_field_index("item_id"), "item_id", pa.array(ids)), file, row_group_size=16
    )
    outputs = ("--json", "out.json", "--predictions", "out")
    line = ("--run", DATA / "run_format_1", "--data.path", "log", "--split", "test", *outputs)
    output = run_script("stem_torchrec/evaluate.py", *line, ranks=2, status=[ExitStatus.LOST_RANK, 2], cwd=tmp_path)
    assert re.search(r"error: .*/test/.*, row \d+, column 'item_id': 1000000 is not an id in", output)
    assert "rank 0 has lost another rank while it was evaluating" in output
    assert not (tmp_path / "out.json").exists()
    assert not list((tmp_path / "out").iterdir())
