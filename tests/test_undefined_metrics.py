"""Labels that leave the watched metric undefined are known before training, and no evaluation loses a training."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.files import Columns, find_row_groups
from stem_torchrec.metrics.multi_task import TaskMetrics
from stem_torchrec.runtime.errors import DivergedError, UserError
from stem_torchrec.training.early_stopping import EarlyStopping
from stem_torchrec.training.watched_metric import WatchedMetric

from logs import SCHEMA, log_table, write_split
from small_runs import run_script

STORED_LOG = Path(__file__).parent / "data/log"
NAN = float("nan")


def watched(folder: Path, metric: str, like: list[Any], **options: Any) -> WatchedMetric:
    """The metric of a validation split of three users, whose labels of `finish` are of both kinds."""
    column = log_table(9).schema.get_field_index("like")
    table = log_table(9).set_column(column, "like", pa.array(like, pa.int8()))
    shutil.rmtree(folder / "valid", ignore_errors=True)
    write_split(folder, table, [[4, 5]], split="valid", **options)
    columns = Columns.select(SCHEMA)
    return WatchedMetric.of_split(metric, columns, find_row_groups(str(folder), "valid", SCHEMA, columns))


ZEROS, ONES, NONE = [0] * 9, [1, None, 1] * 3, [None] * 9
BY_USER = [0, 0, 0, 1, 1, None, 1, 1, 1]


@pytest.mark.parametrize("statistics", [True, False])
def test_labels_that_leave_a_metric_undefined_are_one_sentence(tmp_path: Path, statistics: bool) -> None:
    """Whether the files have statistics or not."""
    for metric, like, problem, fix in (
        ("auc", ZEROS, "only labels that are 0", "leave it out, as in --data.labels finish, or choose another --train"),
        ("ne", ONES, "only labels that are 1", "leave it out, as in --data.labels finish, or choose another --train"),
        ("auc/like", NONE, "no label", "leave it out, as in --data.labels finish, or give a log that has more"),
        ("logloss", NONE, "no label", "leave it out, as in --data.labels finish, or give a log that has more"),
        ("gauc", BY_USER, "no user with labels of both kinds", "leave it out, as in --data.labels finish, or choose"),
    ):
        with pytest.raises(UserError) as error:
            watched(tmp_path, metric, like, write_statistics=statistics)
        sentence = f"--train.metric is {metric!r}, but the validation split has {problem} for task 'like', which"
        assert sentence in str(error.value)
        assert fix in str(error.value)
        assert "\n" not in str(error.value)
    for metric, like in (("auc/finish", ZEROS), ("logloss", ZEROS), ("auc", BY_USER), ("gauc", [0, 1, None] * 3)):
        watched(tmp_path, metric, like, write_statistics=statistics)


@pytest.mark.parametrize("statistics", [True, False])
def test_ratings_are_no_labels(tmp_path: Path, statistics: bool) -> None:
    for like, value in (([1, 5, None] * 3, 5), ([-1] * 9, -1), ([0, 2, 2] * 3, 2)):
        expected = f"the validation split has {value} as a label of task 'like', but labels must be 0, 1 or null; write"
        with pytest.raises(UserError, match=expected):
            watched(tmp_path, "auc", like, write_statistics=statistics)


def metrics(auc: float, logloss: float = 0.5) -> dict[str, TaskMetrics]:
    return {"like": TaskMetrics(auc, NAN, logloss, NAN, NAN, rows=9, positives=0, gauc_groups=0, gauc_rows=0)}


def test_without_a_score_the_newest_weights_are_kept_until_one_is_defined() -> None:
    stopping = EarlyStopping(WatchedMetric("auc", ["like"]), patience=1)
    assert [stopping.better(metrics(auc)) for auc in (NAN, NAN, 0.6, NAN, 0.5)] == [True, True, True, False, False]
    assert stopping.best == 0.6
    with pytest.raises(DivergedError, match="not numbers"):
        stopping.better(metrics(0.6, NAN))


def log_with(folder: Path, like: Any) -> Path:
    """A copy of the stored log, whose validation split has one label of `like`, without counts in schema.json."""
    shutil.copytree(STORED_LOG, folder)
    (file,) = (folder / "valid").iterdir()
    table = pq.read_table(file)
    values = table["like"].to_pylist()
    values = [like(i, value) for i, value in enumerate(values)]
    pq.write_table(table.set_column(table.schema.get_field_index("like"), "like", pa.array(values, pa.int8())), file)
    schema = json.loads((folder / "schema.json").read_text())
    del schema["splits"]["valid"]
    (folder / "schema.json").write_text(json.dumps(schema))
    return folder


def line(log: Path, *options: str) -> list[str]:
    return ["--recipe", "tiny", "--data.path", str(log), "--data.batch-size", "64", *options]


def test_a_task_of_one_kind_is_trained_by_another_metric_and_shown_without_auc(tmp_path: Path) -> None:
    log, run = log_with(tmp_path / "log", lambda row, value: 0), tmp_path / "run"
    options = line(log, "--output-dir", str(run))
    output = run_script("stem_torchrec/train.py", *options, status=2)
    assert "error: --train.metric is 'auc', but the validation split has only labels that are 0 for" in output
    assert not run.exists()
    output = run_script("stem_torchrec/train.py", *options, "--train.metric", "logloss")
    assert next(words for words in map(str.split, output.splitlines()) if words[:1] == ["like"])[1:3] == ["-", "-"]
    stored = json.loads((run / "metrics.json").read_text())["valid"]["like"]
    assert [stored[name] for name in ("auc", "gauc", "ne", "pcoc")] == [None] * 4
    result = tmp_path / "result.json"
    run_script("stem_torchrec/evaluate.py", "--run", run, "--json", result)
    assert json.loads(result.read_text())["valid"]["like"]["auc"] is None


def test_an_evaluation_that_fails_does_not_lose_the_training(tmp_path: Path) -> None:
    """The same command evaluates what has been trained once the file is repaired."""
    log, run = log_with(tmp_path / "log", lambda row, value: 7 if row == 5 else value), tmp_path / "run"
    output = run_script("stem_torchrec/train.py", *line(log, "--output-dir", str(run)), status=2)
    assert "row 5, column 'like': 7 is not 0, 1 or null" in output
    shutil.rmtree(log)
    log_with(log, lambda row, value: value)
    output = run_script("stem_torchrec/train.py", *line(log, "--output-dir", str(run)))
    steps = 192 // 64
    assert f"resuming after step {steps} from" in output
    assert json.loads((run / "metrics.json").read_text())["step"] == steps


def test_a_run_without_checkpoints_keeps_the_weights_of_a_training_whose_evaluation_fails(tmp_path: Path) -> None:
    log, run = log_with(tmp_path / "log", lambda row, value: 7 if row == 5 else value), tmp_path / "run"
    none = ["--checkpoint.minutes", "None", "--output-dir", str(run)]
    run_script("stem_torchrec/train.py", *line(log, *none), status=2)
    assert not (run / "checkpoints").exists()
    output = run_script("stem_torchrec/evaluate.py", "--run", run, "--split", "test")
    assert "test split of" in output
