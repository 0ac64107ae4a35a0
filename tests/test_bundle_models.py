"""Every kind of model and of table, exported as a bundle, scores raw rows as evaluate.py predicts them."""

from pathlib import Path

import numpy as np
import pytest

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
@pytest.mark.parametrize(("tables", "tolerance"), [("fp16", 1e-3), ("int8", 1e-2)])
def test_smaller_tables_score_almost_the_same(folder: Path, tables: str, run: str, tolerance: float) -> None:
    # Embeddings are about 0.5: half a step is 0.5 / 2^11 in fp16, and 2 / 2^9 of the largest in int8.
    bundle = bundle_of(folder, run, tables=tables)
    size = (bundle.folder / "tables.safetensors").stat().st_size
    assert size < (folder / f"bundle-{run}" / "tables.safetensors").stat().st_size
    for task in TASKS:
        predicted = predictions(folder, run)[task]
        np.testing.assert_allclose(bundle.score(raw_of_valid())[task].to_numpy(), predicted, rtol=0, atol=tolerance)
