"""benchmarks/preparation.py: each case is measured once, and the report has all of them."""

import json
from pathlib import Path

import pytest

from prepare.run import PreparationConfig, measure

ROWS = 20_000


@pytest.mark.long
def test_a_run_is_measured_once_and_the_report_has_those_of_earlier_calls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = PreparationConfig(out=str(tmp_path), rows=(ROWS,), pandas_rows=0, rounds=1)
    measure(alone)
    assert "stem-prepare" in capsys.readouterr().out
    measure(alone)
    assert capsys.readouterr().out == ""
    measure(PreparationConfig(out=str(tmp_path), rows=(ROWS,), pandas_rows=ROWS, rounds=1))
    assert capsys.readouterr().out.startswith("pandas")
    runs = [json.loads(file.read_text()) for file in sorted((tmp_path / "runs").iterdir())]
    assert [run["side"] for run in runs] == ["pandas", "stem-prepare"]
    assert list(runs[1]["stages"]) == ["rows", "fit", "write"]
    assert all(run["cpu_seconds"] > 0 and run["peak_gib"] > 0.05 for run in runs)
    assert "20,000" in (tmp_path / "preparation.md").read_text()
