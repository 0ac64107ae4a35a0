"""Every kind of model and of table, exported as a bundle, scores raw rows as evaluate.py predicts them."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from stem_torchrec.serving.bundle import load_bundle

from bundles import ROUNDING, RUNS, TASKS, bundle_of, predictions, raw_of_valid, train_and_export
from distributed import run_ranks

pytestmark = pytest.mark.long
OTHERS = RUNS[1:]
"""Runs beside `stem`."""


@pytest.fixture(scope="module")
def folder(stem_bundle: Path) -> Path:
    """Runs and their bundles."""
    run_ranks(1, train_and_export, stem_bundle, OTHERS, timeout=300)
    return stem_bundle


@pytest.mark.parametrize("run", OTHERS)
def test_a_bundle_scores_raw_rows_as_the_run_predicts_them(folder: Path, run: str) -> None:
    scored = load_bundle(folder / f"bundle-{run}").score(raw_of_valid())
    for task, predicted in predictions(folder, run).items():
        assert np.ptp(predicted) > 1e-3
        np.testing.assert_allclose(scored[task].to_numpy(), predicted, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("run", RUNS)
def test_one_task_alone_scores_as_beside_the_others(folder: Path, run: str, capsys: pytest.CaptureFixture) -> None:
    bundle, rows = bundle_of(folder, run, tasks=("buy",)), raw_of_valid()
    printed = capsys.readouterr().out
    assert bundle.tasks == ("buy",)
    np.testing.assert_allclose(
        bundle.score(rows)["buy"].to_numpy(), predictions(folder, run)["buy"], rtol=0, atol=ROUNDING
    )
    groups = {group for table in bundle.manifest.tables for group in table.name.partition("/")[0].split("+")}
    if run.startswith("stem"):
        assert groups == {"click", "buy", "shared"}
        assert "buy alone keeps the tables of click" in printed
    else:
        assert groups == {"single_task": {"buy"}, "esmm": {"shared"}, "me_ple": {"buy", "shared"}}[run]
        assert "alone keeps" not in printed


@pytest.mark.parametrize("run", ["stem", "stem-packed"])
@pytest.mark.parametrize(("tables", "tolerance"), [("fp16", 1e-4), ("int8", 1e-3)])
def test_smaller_tables_score_almost_the_same(folder: Path, tables: str, run: str, tolerance: float) -> None:
    # Embeddings are about 0.5: half a step is 0.5 / 2^11 in fp16, and 2 / 2^9 of the largest in int8. Of a step the
    # layers of these small models leave about a twentieth.
    bundle = bundle_of(folder, run, tables=tables)
    size = (bundle.folder / "tables.safetensors").stat().st_size
    assert size < (folder / f"bundle-{run}" / "tables.safetensors").stat().st_size
    for task in TASKS:
        predicted = predictions(folder, run)[task]
        # One probability for all rows would not pass.
        assert np.ptp(predicted) > 5 * tolerance
        np.testing.assert_allclose(bundle.score(raw_of_valid())[task].to_numpy(), predicted, rtol=0, atol=tolerance)


def test_tables_of_gigabytes_are_not_read_to_load_them(folder: Path, tmp_path: Path) -> None:
    small = load_bundle(folder / "bundle-stem")
    shutil.copytree(small.folder, tmp_path / "large")
    with_rows(tmp_path / "large", "user", 50_000_000)
    before = resident_bytes()
    large = load_bundle(tmp_path / "large")
    assert sum(table.nbytes for table in large.tables) > 4 * 2**30
    assert large.score(raw_of_valid()).equals(small.score(raw_of_valid()))
    assert resident_bytes() - before < 2**28


def with_rows(folder: Path, feature: str, rows: int) -> None:
    """Gives the tables of a feature more rows, of zeros that take no room on the disk."""
    file, manifest = folder / "tables.safetensors", json.loads((folder / "manifest.json").read_text())
    content = load_file(file)
    for table in manifest["tables"]:
        table["rows"] = rows if table["feature"] == feature else table["rows"]
    file.unlink()
    header, end = {}, 0
    for table in manifest["tables"]:
        shape = [table["rows"], table["columns"]]
        start, end = end, end + 4 * shape[0] * shape[1]
        header[table["name"]] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, entry in header.items():
            stream.seek(8 + len(text) + entry["data_offsets"][0])
            stream.write(content[name].numpy().tobytes())
        stream.truncate(8 + len(text) + end)
    manifest["files"][file.name]["size"] = 8 + len(text) + end
    (folder / "manifest.json").write_text(json.dumps(manifest))


def resident_bytes() -> int:
    """Of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
