"""Predictions are written batch by batch, and the file exists only when it is complete."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from stem_torchrec.data.files import Columns
from stem_torchrec.metrics.predictions import PredictionsFile

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
