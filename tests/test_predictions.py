"""Predictions are written batch by batch, and the file exists only when it is complete."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stem_torchrec.data.files import Columns
from stem_torchrec.metrics.multi_task import TaskMetrics
from stem_torchrec.metrics.predictions import PredictionsFile
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.run_evaluation import EvaluateConfig, EvaluationData, evaluate_run

from distributed import run_ranks
from runs import this_process
from small_runs import run_script

DATA = Path(__file__).parent / "data"

COLUMNS = Columns(sparse={}, dense=(), labels=("view", "like"), group="user")


def test_a_file_holds_the_rows_that_were_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = (40_000, 0, 50_000, 17)  # More than a row group, and a batch of padding.
    batches = [
        (torch.arange(size), torch.randint(9, (size,)), torch.rand(size, 2).round(), torch.randn(size, 2))
        for size in sizes
    ]
    batches[0][2][3, 1] = torch.nan
    with PredictionsFile(str(tmp_path), COLUMNS, rank=1) as file:
        for batch in batches:
            file.write(*batch)
    table = pq.read_table(tmp_path / "part-00001.parquet")
    assert pq.ParquetFile(tmp_path / "part-00001.parquet").num_row_groups == 2
    rows, groups, labels, logits = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert table.column("row").to_pylist() == rows.tolist()
    assert table.column("user").to_pylist() == groups.tolist()
    for i, task in enumerate(COLUMNS.labels):
        expected = [None if value != value else value for value in labels[:, i].tolist()]
        assert table.column(f"label/{task}").to_pylist() == expected
        assert table.column(f"prediction/{task}").to_pylist() == logits[:, i].double().sigmoid().tolist()


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    def write_some() -> None:
        with PredictionsFile(str(tmp_path), COLUMNS, rank=0) as file:
            file.write(torch.arange(2), torch.arange(2), torch.zeros(2, 2), torch.zeros(2, 2))
            raise RuntimeError("a step fails")

    with pytest.raises(RuntimeError, match="a step fails"):
        write_some()
    assert not list(tmp_path.iterdir())


def test_without_rows_the_file_has_columns_only(tmp_path: Path) -> None:
    with PredictionsFile(str(tmp_path), COLUMNS, rank=0) as file:
        nothing = torch.empty(0, dtype=torch.int64)
        file.write(nothing, nothing, torch.empty(0, 2), torch.empty(0, 2))
    table = pq.read_table(tmp_path)
    assert table.num_rows == 0
    assert table.column_names[:2] == ["row", "user"]


def test_a_group_without_a_sign_is_written_as_it_is(tmp_path: Path) -> None:
    groups = np.array([2**64 - 1, 2**63, 2**63 - 1, 0], np.uint64)
    with PredictionsFile(str(tmp_path), COLUMNS, rank=0) as file:
        file.write(torch.arange(4), torch.from_numpy(groups), torch.zeros(4, 2), torch.zeros(4, 2))
    assert pq.read_table(tmp_path)["user"].to_pylist() == groups.tolist()


def evaluate_log(log: Path, predictions: Path) -> None:
    config = EvaluateConfig(
        run=str(DATA / "run_format_1"), data=EvaluationData(str(log)), split="test", predictions=str(predictions)
    )
    evaluate_run(config, this_process())


def test_an_evaluation_predicts_for_the_groups_without_a_sign_that_the_log_has(tmp_path: Path) -> None:
    shutil.copytree(DATA / "log", tmp_path / "log")
    (file,) = (tmp_path / "log/test").iterdir()
    table = pq.read_table(file)
    hashes = pa.array([2**64 - 1 - n // 2 for n in range(len(table))], pa.uint64())
    pq.write_table(table.set_column(table.schema.get_field_index("group_user_id"), "group_user_id", hashes), file)
    run_ranks(2, evaluate_log, tmp_path / "log", tmp_path / "predictions")
    rows = pq.read_table(tmp_path / "predictions").sort_by("row")
    assert rows["group_user_id"].to_pylist() == hashes.to_pylist()


def rows_to_predict(folder: Path, *, dropped: tuple[str, ...] = ("finish", "like"), texts: bool = False) -> Path:
    """The stored log whose test split lacks labels, and has text as groups if asked for."""
    shutil.copytree(DATA / "log", folder)
    (file,) = (folder / "test").iterdir()
    table = pq.read_table(file)
    if texts:
        position = table.schema.get_field_index("group_user_id")
        users = pa.array([f"user {each}" for each in table["group_user_id"].to_pylist()])
        table = table.set_column(position, "group_user_id", users)
    pq.write_table(table.drop_columns(list(dropped)), file)
    return folder


def test_rows_without_labels_get_predictions_and_no_metrics(tmp_path: Path) -> None:
    log = rows_to_predict(tmp_path / "log")
    run_ranks(2, evaluate_log, DATA / "log", tmp_path / "labeled")
    options = ("--run", DATA / "run_format_1", "--data.path", log, "--split", "test")
    printed = run_script("stem_torchrec/evaluate.py", *options, "--predictions", tmp_path / "predictions", ranks=2)
    assert (
        f"test split of {log}, 32 rows without labels, and so without metrics; their predictions are in "
        f"{tmp_path}/predictions\n" in printed
    )
    assert "AUC" not in printed
    rows, labeled = (pq.read_table(tmp_path / each).sort_by("row") for each in ("predictions", "labeled"))
    assert rows.column_names == ["row", "group_user_id", "prediction/finish", "prediction/like"]
    assert rows["row"].to_pylist() == list(range(32))
    for name in rows.column_names[2:]:
        # Another number of threads adds up float32 in another order.
        assert rows[name].to_pylist() == pytest.approx(labeled[name].to_pylist(), rel=1e-5)


@pytest.mark.parametrize("labels", [["finish", "like"], []])
def test_a_log_of_its_own_without_labels_is_predicted(tmp_path: Path, labels: list[str]) -> None:
    log = rows_to_predict(tmp_path / "log")
    path = log / "schema.json"
    schema = json.loads(path.read_text())
    path.write_text(json.dumps(schema | {"labels": labels, "splits": {}}))
    run_ranks(1, evaluate_log, log, tmp_path / "predictions")
    assert pq.read_table(tmp_path / "predictions").num_rows == 32


def message_of(config: EvaluateConfig) -> str:
    with pytest.raises(UserError) as error:
        evaluate_run(config, this_process())
    return str(error.value)


def test_labels_are_needed_for_metrics_and_all_of_them_where_there_is_one(tmp_path: Path) -> None:
    run = str(DATA / "run_format_1")
    none = EvaluationData(str(rows_to_predict(tmp_path / "none")))
    one = EvaluationData(str(rows_to_predict(tmp_path / "one", dropped=("like",))))
    out = str(tmp_path / "predictions")
    config = EvaluateConfig(run=run, data=none, split="test")
    file = "test/part-00000.parquet"
    assert run_ranks(1, message_of, config) == [f"{tmp_path}/none/{file} has no column 'finish'; schema.json names it."]
    with_json = replace(config, predictions=out, json=str(tmp_path / "metrics.json"))
    assert run_ranks(1, message_of, with_json) == [
        f"--json is for metrics, but the rows of {tmp_path}/none/test have no labels; leave it out."
    ]
    assert run_ranks(1, message_of, replace(config, data=one, predictions=out)) == [
        f"{tmp_path}/one/{file} has no column 'like'; schema.json names it."
    ]


def evaluate_texts(log: Path, predictions: Path) -> dict[str, TaskMetrics]:
    run, data = str(DATA / "run_format_1"), EvaluationData(str(log))
    return evaluate_run(EvaluateConfig(run=run, data=data, split="test", predictions=str(predictions)), this_process())


def test_groups_of_text_are_compared_across_ranks_and_written_as_text(tmp_path: Path) -> None:
    log = rows_to_predict(tmp_path / "log", dropped=(), texts=True)
    numbers = run_ranks(1, evaluate_texts, DATA / "log", tmp_path / "numbers")[0]
    for ranks in (1, 2):
        out = tmp_path / f"texts-{ranks}"
        results = run_ranks(ranks, evaluate_texts, log, out)
        for task, expected in numbers.items():
            # On two ranks batches are smaller, whose float32 sums may round otherwise; the order of the rows stays.
            ranking = [(each[task].auc, each[task].gauc, each[task].gauc_groups) for each in results]
            assert ranking == [(expected.auc, expected.gauc, expected.gauc_groups)] * ranks
        assert numbers["finish"].gauc_groups > 1
        rows = pq.read_table(out).sort_by("row")
        users = pq.read_table(tmp_path / "numbers").sort_by("row")["group_user_id"].to_pylist()
        assert rows["group_user_id"].to_pylist() == [f"user {user}" for user in users]
