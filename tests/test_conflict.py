from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.errors import UserError

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


def test_a_model_that_diverged_at_one_dial_is_left_out_at_all(tmp_path: Path) -> None:
    rows = [
        {"conflict": dial, "model": model, "seed": 0, "task": "like", "auc": 0.6 + dial / 10}
        for dial in (0.0, 1.0)
        for model in ("stem", "mmoe", "ple")
        if (dial, model) != (1.0, "mmoe")
    ]
    write(tmp_path, rows, {"mmoe"})
    report = (tmp_path / "conflict.md").read_text()
    assert "Left out because they diverged: mmoe." in report
    assert "| mmoe |" not in report
    with pytest.raises(UserError, match="mmoe, ple diverged, so there is no margin to show"):
        write(tmp_path, rows, {"mmoe", "ple"})
