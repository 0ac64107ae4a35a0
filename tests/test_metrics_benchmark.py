from pathlib import Path

import pyarrow.parquet as pq
import pytest

from studies.exact_metrics import MetricsConfig, measure


@pytest.mark.long
def test_all_sides_agree_on_the_auc(tmp_path: Path) -> None:
    measure(MetricsConfig(out=str(tmp_path), rows=(20_000,), ranks=(1,), rounds=1))
    rows = pq.read_table(tmp_path / "metrics.parquet").to_pylist()
    assert [(row["side"], row["ranks"]) for row in rows] == [("ours", 1), ("sklearn", 1), ("torchmetrics", 1)]
    ours, sklearn, torchmetrics = (row["auc"] for row in rows)
    assert ours == pytest.approx(sklearn, abs=1e-9)
    # torchmetrics counts in float32.
    assert ours == pytest.approx(torchmetrics, abs=1e-4)
    assert "million rows/s" in (tmp_path / "metrics.md").read_text()
