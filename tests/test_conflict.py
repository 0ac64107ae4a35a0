"""What STEM gains as tasks disagree: a log and a comparison for each dial, and where they may be written."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.errors import UserError

from owners import owned_by_another_process
from studies.task_conflict import measure, read_command_line, write


@pytest.mark.long
def test_each_dial_has_a_log_and_a_comparison(tmp_path: Path) -> None:
    line = ["--recipe", "tiny", "--dials", "0", "1", "--models", "stem,single_task,shared_bottom", "--seeds", "0"]
    sizes = ["--data.synthetic.train-rows", "2048", "--data.synthetic.test-rows", "600"]
    measure(*read_command_line([*line, *sizes, "--resamples", "5", "--out", str(tmp_path)]))
    rows = pq.read_table(tmp_path / "conflict.parquet").to_pylist()
    assert {(row["conflict"], row["model"]) for row in rows} == {
        (dial, model) for dial in (0.0, 1.0) for model in ("stem", "single_task", "shared_bottom")
    }
    for dial in (0, 1):
        assert f"conflict={dial}.0," in (load_schema(str(tmp_path / f"conflict_{dial}" / "log")).description or "")
    assert "(shared_bottom)" in (tmp_path / "conflict.md").read_text()
    assert (tmp_path / "conflict.png").stat().st_size > 0


def test_a_model_that_could_not_be_trained_at_one_dial_is_left_out_at_all(tmp_path: Path) -> None:
    rows = [
        {"conflict": dial, "model": model, "seed": 0, "task": "like", "auc": 0.6 + dial / 10}
        for dial in (0.0, 1.0)
        for model in ("stem", "mmoe", "ple")
        if (dial, model) != (1.0, "mmoe")
    ]
    write(tmp_path, rows, {"mmoe"})
    report = (tmp_path / "conflict.md").read_text()
    assert "Left out, as they could not be trained: mmoe." in report
    assert "| mmoe |" not in report
    with pytest.raises(UserError, match="mmoe, ple could not be trained, so there is no margin to show"):
        write(tmp_path, rows, {"mmoe", "ple"})


@pytest.mark.parametrize("taken", ["by a log", "by another process"])
def test_a_folder_that_is_taken_is_refused_before_a_log_is_drawn(tmp_path: Path, taken: str) -> None:
    if taken == "by a log":
        (tmp_path / "schema.json").write_text("{}")
        sentence = f"--out {tmp_path} holds a run or a log; give another folder."
    else:
        owned_by_another_process(tmp_path)
        sentence = f"{tmp_path} is in use by process {os.getppid()} on "
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError) as error:
        measure(*read_command_line(["--recipe", "tiny", "--dials", "0", "--out", str(tmp_path)]))
    assert str(error.value).startswith(sentence)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
