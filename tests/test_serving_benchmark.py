"""benchmarks/serving.py: every side scores the same rows with the same weights, and the report has all of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stem_torchrec.config.serialization import to_dict
from stem_torchrec.runtime.errors import UserError

from scorers.run import ServingConfig, measure, read_command_line
from scorers.sides import SIDES
from under_load.run import ServingLoadConfig
from under_load.run import measure as measure_load


@pytest.mark.long
def test_the_report_has_every_side_and_all_rank_the_rows_alike(stem_bundle: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(stem_bundle / "stem", run)
    config = ServingConfig(
        run=str(run), out=str(tmp_path / "out"), rows=(1, 200), seconds=0.01, rounds=1, compile=False
    )
    measure(config)
    sides = [name for name in SIDES if "compiled" not in name]
    turns = pq.read_table(tmp_path / "out/serving.parquet").to_pylist()
    of_ids = [(turn["rows"], turn["side"]) for turn in turns if not turn["raw"]]
    assert of_ids == [(rows, side) for rows in config.rows for side in sides]
    assert {turn["side"] for turn in turns if turn["raw"]} == {"bundle", "bundle, fp16", "bundle, int8"}
    text = (tmp_path / "out/serving.md").read_text()
    totals = text[text.index("## Start, memory, size and AUC") :].splitlines()
    aucs = {
        cells[0].strip(): [float(cell) for cell in cells[4:6]]
        for cells in (line.strip("| ").split("|") for line in totals[4:] if line)
    }
    assert list(aucs) == sides
    # 100 rows make 2,500 pairs; tables of 8 bits turn some of them.
    for of_side in aucs.values():
        assert of_side == pytest.approx(aucs["TorchRec"], abs=0.02)
    assert aucs["bundle"] == aucs["TorchRec"]
    # The bundles in the folder are of other weights now.
    [file, *_] = (run / "best").glob("*.distcp")
    file.write_bytes(file.read_bytes() + b"?")
    with pytest.raises(UserError, match="holds another benchmark, where weights is sha256:"):
        measure(config)


def test_a_benchmark_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--run or --rows is missing"):
        read_command_line(["--out", str(tmp_path / "new")])


def test_the_folder_of_another_load_is_refused_before_the_bundle_is_loaded(tmp_path: Path) -> None:
    # A bundle that cannot be loaded.
    (tmp_path / "manifest.json").write_text("{}")
    config = ServingLoadConfig(bundle=str(tmp_path), out=str(tmp_path), rows=(1,))
    load = {"config": to_dict(replace(config, out="", rows=(8,))), "bundle": "sha256:0"}
    (tmp_path / "identity.json").write_text(json.dumps({"load": load, "head": {}}))
    with pytest.raises(
        UserError, match=r"holds another load, where bundle is sha256:0 .*, config\.rows is 8 and not 1"
    ):
        measure_load(config)
