"""Predictions are written batch by batch, and the file exists only when it is complete."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stem_torchrec.data.files import Columns
from stem_torchrec.metrics.predictions import PredictionsFile
from stem_torchrec.training.run_evaluation import EvaluateConfig, EvaluationData, evaluate_run

from distributed import run_ranks
from runs import this_process

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
