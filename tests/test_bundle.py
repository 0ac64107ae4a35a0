"""A bundle scores raw rows as evaluate.py predicts them, without TorchRec, or is refused in one sentence."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stem_torchrec import export
from stem_torchrec.runtime.errors import DataError, UserError
from stem_torchrec.serving.bundle import load_bundle
from stem_torchrec.serving.export_run import ExportConfig, export_run
from stem_torchrec.serving.manifest import read_manifest

from bundles import RUNS, TASKS, bundle_of, predictions, raw_of_valid, train_and_export
from distributed import run_ranks

ROOT = Path(__file__).parent.parent
ROUNDING = 1e-6
"""Of fp32 probabilities: FBGEMM and torch add up a bag in another order, and a product of fewer streams rounds anew."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs and their bundles."""
    folder = tmp_path_factory.mktemp("bundles")
    run_ranks(1, train_and_export, folder, timeout=300)
    return folder


def scores(table: pa.Table) -> np.ndarray:
    """(B, T)."""
    return np.stack([table[task].to_numpy() for task in table.column_names], axis=1)


@pytest.mark.parametrize("run", RUNS)
def test_a_bundle_scores_raw_rows_as_the_run_predicts_them(folder: Path, run: str) -> None:
    scored = load_bundle(folder / f"bundle-{run}").score(raw_of_valid())
    assert scored.schema == pa.schema([(task, pa.float32()) for task in TASKS])
    predicted = predictions(folder, run)
    assert len(scored) == len(predicted["click"]) == 100
    for task in TASKS:
        assert np.ptp(predicted[task]) > 1e-3
        np.testing.assert_allclose(scored[task].to_numpy(), predicted[task], rtol=0, atol=ROUNDING)


def test_each_row_is_scored_by_itself(folder: Path) -> None:
    bundle, rows = load_bundle(folder / "bundle-stem"), raw_of_valid()
    whole = scores(bundle.score(rows))
    one_by_one = np.concatenate([scores(bundle.score(rows.slice(i, 1))) for i in range(10)])
    np.testing.assert_allclose(one_by_one, whole[:10], rtol=0, atol=ROUNDING)
    many = scores(bundle.score(pa.concat_tables([rows] * 45)))  # More than are scored at once.
    np.testing.assert_allclose(many, np.tile(whole, (45, 1)), rtol=0, atol=ROUNDING)
    assert scores(bundle.score(rows.slice(0, 0))).shape == (0, 2)


def test_unseen_and_missing_values_get_what_training_gave_them(folder: Path) -> None:
    bundle, row = load_bundle(folder / "bundle-stem"), raw_of_valid().slice(0, 1)

    def with_city(value: str | None) -> np.ndarray:
        column = pa.array([value], pa.string())
        return scores(bundle.score(row.set_column(row.column_names.index("city"), "city", column)))

    assert np.array_equal(with_city("atlantis"), with_city("el dorado"))
    for other in ("rome", None):  # The spec gives a missing city an id of its own.
        assert not np.array_equal(with_city("atlantis"), with_city(other))
    nulls = row.set_column(row.column_names.index("city"), "city", pa.nulls(1))
    assert np.array_equal(scores(bundle.score(nulls)), with_city(None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows.drop_columns(["city"]),
            "the rows have no column 'city'; give it, with nulls where its values",
        ),
        (
            lambda rows: rows.rename_columns(["citi" if name == "city" else name for name in rows.column_names]),
            "the rows have no column 'city'; did you mean 'citi'?",
        ),
        (
            lambda rows: rows.set_column(0, "user", pa.array([None, "anna"], pa.string())),
            "column 'user' holds text, but must hold int: row 1 has 'anna'.",
        ),
    ],
)
def test_a_wrong_column_is_named(folder: Path, change: Callable[[pa.Table], pa.Table], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_bundle(folder / "bundle-stem").score(change(raw_of_valid().slice(0, 2)))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "run",
    ["stem", *(pytest.param(run, marks=pytest.mark.long) for run in ("stem-packed", "single_task", "esmm", "me_ple"))],
)
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


@pytest.mark.parametrize(
    ("tables", "run", "tolerance"),
    [pytest.param("fp16", "stem", 1e-3, marks=pytest.mark.long), ("int8", "stem-packed", 1e-2)],
)
def test_smaller_tables_score_almost_the_same(folder: Path, tables: str, run: str, tolerance: float) -> None:
    # Embeddings are about 0.5: half a step is 0.5 / 2^11 in fp16, and 2 / 2^9 of the largest in int8.
    bundle = bundle_of(folder, run, tables=tables)
    size = (bundle.folder / "tables.safetensors").stat().st_size
    assert size < (folder / f"bundle-{run}" / "tables.safetensors").stat().st_size
    for task in TASKS:
        predicted = predictions(folder, run)[task]
        np.testing.assert_allclose(bundle.score(raw_of_valid())[task].to_numpy(), predicted, rtol=0, atol=tolerance)


HIDDEN = """
import sys
from importlib.machinery import PathFinder

class WithoutTorchRec(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("torchrec", "fbgemm_gpu")
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTorchRec
"""


def test_a_bundle_is_scored_without_torchrec_fbgemm_and_a_process_group(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.arrow").write_bytes(b"")
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, raw_of_valid().schema) as writer:
        writer.write_table(raw_of_valid())
    program = f"""{HIDDEN}
import torch.distributed as dist
import pyarrow as pa
from stem_torchrec.serving.bundle import load_bundle
rows = pa.ipc.open_file("rows.arrow").read_all()
bundle = load_bundle({str(folder / "bundle-stem")!r})
scored = bundle.score(rows)
assert not dist.is_initialized()
assert not [name for name in sys.modules if name.partition(".")[0] in ("torchrec", "fbgemm_gpu")]
[mapped] = [line for line in open("/proc/self/maps") if "tables.safetensors" in line]
print(scored["buy"].to_pylist())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), predictions(folder, "stem")["buy"], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "manifest.json").unlink(),
            "BUNDLE is no bundle, as it has no manifest.json; stem-export writes",
        ),
        (lambda f: (f / "manifest.json").write_text("{}"), "BUNDLE/manifest.json cannot be read (it has no format)"),
        (
            lambda f: (f / "manifest.json").write_text('{"format": 9}'),
            "BUNDLE/manifest.json has the format 9, but this",
        ),
        (lambda f: (f / "model.pt2").unlink(), "BUNDLE/model.pt2 is missing; copy the bundle as a whole"),
        (lambda f: os.truncate(f / "tables.safetensors", 1000), "BUNDLE/tables.safetensors has 1000 bytes, but "),
        (lambda f: flip(f / "tables.safetensors"), "BUNDLE/tables.safetensors was changed after the export"),
        (lambda f: flip(f / "vocabulary/city.parquet"), "BUNDLE/vocabulary/city.parquet was changed after the export"),
    ],
)
def test_a_damaged_bundle_is_refused(folder: Path, tmp_path: Path, damage: Callable, message: str) -> None:
    shutil.copytree(folder / "bundle-esmm", tmp_path / "bundle")
    damage(tmp_path / "bundle")
    with pytest.raises(UserError) as error:
        load_bundle(tmp_path / "bundle")
    assert str(error.value).replace(str(tmp_path / "bundle"), "BUNDLE").startswith(message)
    assert "\n" not in str(error.value)


def flip(file: Path) -> None:
    """Changes the last byte."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": ""}, "--run or --out is missing"),
        ({"out": "esmm/best"}, "--out FOLDER/esmm/best is a part of the run"),
        ({"out": "bundle-stem"}, "FOLDER/bundle-stem exists already; give another --out, or delete it."),
        ({"tasks": ("bye",)}, "--tasks bye is not a task of the run, only buy, click; did you mean 'buy'?"),
        ({"log": "nowhere"}, "the log FOLDER/nowhere is not a folder of this machine; give a copy of its schema.json"),
        ({"run": "log"}, "there is no configuration 'FOLDER/log/config.yaml'"),
    ],
)
def test_an_export_that_is_refused_leaves_nothing(folder: Path, changes: dict, message: str) -> None:
    before = sorted(folder.iterdir())
    options = {"run": "esmm", "out": "new"} | changes
    paths = {name: str(folder / value) if value else "" for name, value in options.items() if name != "tasks"}
    with pytest.raises(UserError) as error:
        export_run(ExportConfig(**(options | paths)))
    assert str(error.value).replace(str(folder), "FOLDER").startswith(message)
    assert sorted(folder.iterdir()) == before


def test_a_log_without_transforms_is_scored_from_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ROOT / "tests" / "data"
    line = ["--run", str(data / "run_format_1"), "--log", str(data / "log"), "--out", str(tmp_path / "bundle")]
    monkeypatch.setattr(sys, "argv", ["export.py", *line])
    export.main()
    bundle = load_bundle(tmp_path / "bundle")
    assert not bundle.manifest.raw
    assert bundle.manifest.run["step"] == 4
    rows = pa.table(
        {"item_id": [1, None, 2], "tags": [[1, 2], None, []]} | {n: [0.0] * 3 for n in bundle.columns.dense}
    )
    assert np.isfinite(scores(bundle.score(rows))).all()
    outside = rows.set_column(0, "item_id", pa.array([1, 2, 10**6]))
    with pytest.raises(DataError, match=r"^row 7, column 'item_id': 1000000 is not an id in \[0, "):
        bundle.score(outside, first_row=5)


@pytest.mark.long
def test_a_compiled_bundle_scores_the_same_and_is_for_one_machine(folder: Path) -> None:
    bundle, rows = bundle_of(folder, "stem", compile=True), raw_of_valid()
    plain = scores(load_bundle(bundle.folder, compiled=False).score(rows))
    for n in (1, 2, 100):
        np.testing.assert_allclose(scores(bundle.score(rows.slice(0, n))), plain[:n], rtol=0, atol=ROUNDING)
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    manifest["compiled"]["processor"] = "another"
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    assert np.array_equal(scores(load_bundle(bundle.folder).score(rows)), plain)
    with pytest.raises(UserError, match="is compiled for"):
        load_bundle(bundle.folder, compiled=True)
    assert read_manifest(bundle.folder).compiled is not None
