"""benchmarks/reader.py: what it measures is read whole, and its store takes its time."""

from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest
import torch

from feeding.logs import Shape, write_log
from feeding.rates import open_reader
from feeding.run import ReaderConfig, measure
from feeding.slow_store import SlowStore, slow_store


@pytest.mark.parametrize("shape", get_args(Shape))
def test_a_slow_store_gives_the_same_batches_and_takes_its_time(
    tmp_path: Path, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path, shape, 70_000)
    waits: list[float] = []
    monkeypatch.setattr("feeding.slow_store.sleep", waits.append)
    batches = []
    for latency in (0.0, 0.05):
        with slow_store(str(tmp_path), latency) as path:
            batches.append(list(open_reader(path, batch_size=50_000, workers=0)))
        assert bool(waits) == bool(latency)
    assert set(waits) == {0.05}
    assert len(waits) > 2
    for local, remote in zip(*batches, strict=True):
        assert torch.equal(local.sparse_features.values(), remote.sparse_features.values())
        assert torch.equal(local.labels, remote.labels)
    assert sum(len(batch.labels) for batch in batches[0]) == 70_000
    assert SlowStore(0.05).requests == 0


@pytest.mark.long
def test_the_report_has_every_case(tmp_path: Path) -> None:
    measure(ReaderConfig(out=str(tmp_path), rows=60_000, steps=2, latency_ms=1, rounds=1, workers=(0,)))
    rows = pq.read_table(tmp_path / "reader.parquet").to_pylist()
    assert [(row["shape"], row["model"]) for row in rows[::2]] == [
        *((shape, "") for shape in get_args(Shape)),
        ("ids", "reference"),
        ("ids", "small experts"),
    ]
    text = (tmp_path / "reader.md").read_text()
    assert "million rows/s" in text
    assert "waiting %" in text
