"""Every kind of model and of table, exported as a bundle, scores raw rows as evaluate.py predicts them."""

import os
import resource
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.serving.bundle import Bundle, load_bundle

from bundles import ROUNDING, RUNS, TASKS, bundle_of, predictions, raw_of_valid, train_and_export
from distributed import run_ranks
from studies.sparse_tables import grow_tables

long = pytest.mark.long
EVERY = [run if run == "aitm" else pytest.param(run, marks=long) for run in RUNS]
"""In the fast tier a model that is unlike STEM, of which there are tests in test_bundle.py."""
ALL_GROUPS = {"buy", "click", "shared"}
GROUPS = {
    **dict.fromkeys(("stem", "stem-packed", "stem-options", "duet", "me_mmoe"), ALL_GROUPS),
    **{"me_ple": {"buy", "shared"}, "single_task": {"buy"}},
}
"""Whose tables one task alone, buy, keeps; the shared ones in other models."""


@pytest.fixture(scope="module")
def folder(stem_bundle: Path) -> Path:
    """Runs and their bundles; `exported` makes those that it lacks."""
    return stem_bundle


def exported(folder: Path, run: str) -> Path:
    """The bundle of a run, which is trained and exported once."""
    bundle = folder / f"bundle-{run}"
    if not bundle.exists():
        run_ranks(1, train_and_export, folder, [run], timeout=300)
    return bundle


@pytest.mark.parametrize("run", EVERY)
def test_a_bundle_scores_raw_rows_as_the_run_predicts_them(folder: Path, run: str) -> None:
    scored = load_bundle(exported(folder, run)).score(raw_of_valid())
    for task, predicted in predictions(folder, run).items():
        assert np.ptp(predicted) > 1e-3
        np.testing.assert_allclose(scored[task].to_numpy(), predicted, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("run", EVERY)
def test_one_task_alone_scores_as_beside_the_others_and_the_command_tells_its_size(
    folder: Path, run: str, capsys: pytest.CaptureFixture
) -> None:
    whole = load_bundle(exported(folder, run))
    capsys.readouterr()
    bundle, rows = bundle_of(folder, run, tasks=("buy",)), raw_of_valid()
    printed = capsys.readouterr().out
    assert bundle.tasks == ("buy",)
    np.testing.assert_allclose(
        bundle.score(rows)["buy"].to_numpy(), predictions(folder, run)["buy"], rtol=0, atol=ROUNDING
    )
    groups = {group for table in bundle.manifest.tables for group in table.name.partition("/")[0].split("+")}
    assert groups == GROUPS.get(run, {"shared"})
    weights, of_whole = dense_weights(bundle), dense_weights(whole)
    assert {name for name in weights if "towers." in name} == {name for name in of_whole if "towers.buy." in name}
    assert (
        f"tables {megabytes(bundle.tables)} (fp32), other weights {megabytes(weights.values())}; "
        f"all 2 tasks take {megabytes(whole.tables)} and {megabytes(of_whole.values())}\n"
    ) in printed
    if "click" in groups:
        # A packed table has as many columns of each of its groups.
        kept = {t.name: t.rows * t.columns * 4 / (1 + t.name.count("+")) for t in bundle.manifest.tables}
        of_click = sum(size for name, size in kept.items() if "click" in name)
        assert f"buy alone keeps the tables of click, {of_click / 1e6:,.3f} MB: its gate reads" in printed
    else:
        assert "alone keeps" not in printed


def dense_weights(bundle: Bundle) -> dict[str, Tensor]:
    """What the program has beside the tables, by name."""
    return torch.export.load(bundle.folder / "model.pt2").state_dict


def megabytes(tensors: Iterable[Tensor]) -> str:
    """As the command prints it."""
    return f"{sum(tensor.nbytes for tensor in tensors) / 1e6:,.3f} MB"


@long
@pytest.mark.parametrize("run", ["stem", "stem-packed"])
@pytest.mark.parametrize(("tables", "tolerance"), [("fp16", 1e-4), ("int8", 1e-3)])
def test_smaller_tables_score_almost_the_same(folder: Path, tables: str, run: str, tolerance: float) -> None:
    # Embeddings are about 0.5: half a step is 0.5 / 2^11 in fp16, and 2 / 2^9 of the largest in int8. Of a step the
    # layers of these small models leave about a twentieth.
    whole, bundle = exported(folder, run), bundle_of(folder, run, tables=tables)
    size = (bundle.folder / "tables.safetensors").stat().st_size
    assert size < (whole / "tables.safetensors").stat().st_size
    for task in TASKS:
        predicted = predictions(folder, run)[task]
        # One probability for all rows would not pass.
        assert np.ptp(predicted) > 5 * tolerance
        np.testing.assert_allclose(bundle.score(raw_of_valid())[task].to_numpy(), predicted, rtol=0, atol=tolerance)


def test_tables_of_more_than_the_memory_are_opened_and_not_read(stem_bundle: Path, tmp_path: Path) -> None:
    small = load_bundle(stem_bundle / "bundle-stem")
    shutil.copytree(small.folder, tmp_path / "large")
    # Three tables of 8 columns. Linux refuses so much memory, unless it is of a file and is not written to.
    grow_tables(tmp_path / "large", "user", 2 * memory_and_swap() // (3 * 8 * 4))
    before = resident_bytes()
    large = load_bundle(tmp_path / "large")
    assert sum(table.nbytes for table in large.tables) > 2 * memory_and_swap()
    assert large.score(raw_of_valid()).equals(small.score(raw_of_valid()))
    assert resident_bytes() - before < 2**28


def test_tables_that_cannot_be_mapped_are_refused_in_one_sentence(stem_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(stem_bundle / "bundle-stem", tmp_path / "large")
    grow_tables(tmp_path / "large", "user", 10**12 // (3 * 8 * 4))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    try:
        # Enough for all but the tables.
        resource.setrlimit(resource.RLIMIT_AS, (100 * 2**30, limits[1]))
        with pytest.raises(UserError) as error:
            load_bundle(tmp_path / "large")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    file = tmp_path / "large/tables.safetensors"
    assert str(error.value).startswith(f"{file} cannot be mapped into memory (")
    assert str(error.value).endswith(" or copy the bundle to a disk whose files can be mapped.")


def memory_and_swap() -> int:
    """Bytes of this machine."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "SwapTotal"))


def resident_bytes() -> int:
    """Of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
