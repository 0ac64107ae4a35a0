"""The benchmark of deltas, small."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shipping.run import DeltasConfig, measure_deltas


@pytest.mark.long
def test_sizes_of_deltas_and_what_they_cost_are_measured(tmp_path: Path) -> None:
    small = ["--recipe", "tiny", "--data.synthetic.train-rows", "6000", "--model.embedding-dim", "4"]
    small += ["--data.synthetic.users", "5000", "--data.synthetic.items", "5000", "--data.batch-size", "64"]
    measure_deltas(DeltasConfig(str(tmp_path), ranks=1, minutes=0.02, rounds=1, size_steps=60), small)
    sizes = pq.read_table(tmp_path / "deltas.parquet").to_pylist()
    assert [(row["number"], row["full"]) for row in sizes[:3]] == [(0, True), (1, False), (2, False)]
    assert len(sizes) == 12
    full, changed = sizes[0], sizes[1]
    assert changed["mb"] < full["mb"]
    assert changed["share_like"] < changed["share_shared"] < full["share_shared"] == 1
    assert "the first delta, once" in (tmp_path / "deltas.md").read_text()
    blocks = pq.read_table(tmp_path / "blocks.parquet").to_pylist()
    assert [row["kind"] for row in blocks] == ["first", "alone", "shipping", "alone"]
    assert [row["mb"] is None for row in blocks] == [False, True, False, True]
