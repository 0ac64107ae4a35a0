"""The benchmarks of killed runs and of checkpoints, small; and the comparison of two runs finds what differs."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recovery.pauses import PauseConfig, measure_pauses
from recovery.soak import FaultsConfig, soak
from recovery.train_runs import differences

SMALL = ["--model.embedding-dim", "4", "--data.synthetic.train-rows", "6000"]


@pytest.mark.long
def test_a_soak_counts_its_faults_and_finds_no_difference(tmp_path: Path) -> None:
    soak(FaultsConfig(out=str(tmp_path), kills=1, ranks=1, seconds=0.1), [*SMALL, "--train.epochs", "4"])
    killed, ended = pq.read_table(tmp_path / "faults.parquet").to_pylist()
    assert (killed["victims"], killed["ended"]) == ([0], False)
    assert ended["ended"]
    report = (tmp_path / "faults.md").read_text()
    assert re.search(r"^\| faults survived +\| +1 +\|$", report, re.MULTILINE)
    assert re.search(r"^\| tensors and numbers that differ from the run left alone +\| +0 +\|$", report, re.MULTILINE)

    whole, other = tmp_path / "whole", tmp_path / "killed"
    assert differences(other, whole) == []
    *lines, last = (other / "metrics.jsonl").read_text().splitlines()
    changed = json.loads(last)
    changed["valid/like/auc"] += 1e-9
    (other / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(changed)]) + "\n")
    assert differences(other, whole) == [f"metrics.jsonl, step {changed['step']}: valid/like/auc"]
    older, newest = sorted((other / "checkpoints").iterdir())
    shutil.rmtree(newest)
    older.rename(newest)
    names = differences(other, whole)
    assert any("optimizer" in name for name in names)
    assert any("model" in name for name in names)


@pytest.mark.long
def test_pauses_are_measured_behind_the_warm_up(tmp_path: Path) -> None:
    small = [*SMALL, "--recipe", "tiny", "--data.synthetic.users", "50", "--data.synthetic.items", "50"]
    measure_pauses(PauseConfig(out=str(tmp_path), ranks=1, steps=100, minutes=0.001, rounds=1), small)
    saved, alone = pq.read_table(tmp_path / "checkpoint_pause.parquet").to_pylist()
    assert saved["checkpoints"] > 0
    assert saved["paused"] > 0
    assert alone["checkpoints"] == 0
    assert "Median: " in (tmp_path / "checkpoint_pause.md").read_text()
