"""A bundle scores raw rows as evaluate.py predicts them, without TorchRec, or is refused in one sentence.

test_bundle_models.py has the same for every kind of model and table, test_bundle_compiled.py for compiled programs.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import text_format
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from stem_torchrec import export
from stem_torchrec.calibration.curves import calibrate
from stem_torchrec.run_report.write_report import ReportOptions, write_report
from stem_torchrec.runtime.errors import DamagedError, DataError, UserError
from stem_torchrec.serving.bundle import Bundle, load_bundle
from stem_torchrec.serving.export_run import ExportConfig, export_run
from stem_torchrec.serving.manifest import Machine, checksum
from stem_torchrec.serving.program import machine_of, this_machine

from bundles import ROUNDING, TASKS, bundle_of, calibrate_stem, predictions, raw_of_valid, scores
from distributed import run_ranks

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"


@pytest.fixture(scope="module")
def bundle(stem_bundle: Path) -> Bundle:
    """Of the run `stem`."""
    return load_bundle(stem_bundle / "bundle-stem")


def test_a_bundle_scores_raw_rows_as_the_run_predicts_them(stem_bundle: Path, bundle: Bundle) -> None:
    scored = bundle.score(raw_of_valid())
    assert scored.schema == pa.schema([(task, pa.float32()) for task in TASKS])
    predicted = predictions(stem_bundle, "stem")
    assert len(scored) == len(predicted["click"]) == 100
    for task in TASKS:
        assert np.ptp(predicted[task]) > 1e-3
        np.testing.assert_allclose(scored[task].to_numpy(), predicted[task], rtol=0, atol=ROUNDING)


def test_the_program_on_the_page_runs(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/serving.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    exec(program.replace("bundles/all", str(bundle.folder)), {})
    printed = capsys.readouterr().out
    assert printed.startswith("('buy', 'click') ['city', 'time', ")
    assert "click: float" in printed


def test_each_row_is_scored_by_itself(bundle: Bundle) -> None:
    rows = raw_of_valid()
    whole = scores(bundle.score(rows))
    one_by_one = np.concatenate([scores(bundle.score(rows.slice(i, 1))) for i in range(10)])
    np.testing.assert_allclose(one_by_one, whole[:10], rtol=0, atol=ROUNDING)
    many = scores(bundle.score(pa.concat_tables([rows] * 45)))  # More than are scored at once.
    np.testing.assert_allclose(many, np.tile(whole, (45, 1)), rtol=0, atol=ROUNDING)
    assert scores(bundle.score(rows.slice(0, 0))).shape == (0, 2)


def test_threads_that_score_at_once_get_the_probabilities_of_one_thread(bundle: Bundle) -> None:
    parts = [raw_of_valid().slice(start, 1 + start % 7) for start in range(50)]
    alone = [bundle.score(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        of_threads = pool.map(lambda _: [bundle.score(part) for part in parts], range(4))
        for scored in of_threads:
            for part, expected in zip(scored, alone, strict=True):
                np.testing.assert_allclose(scores(part), scores(expected), rtol=0, atol=ROUNDING)


def test_unseen_and_missing_values_get_what_training_gave_them(bundle: Bundle) -> None:
    row = raw_of_valid().slice(0, 1)

    def with_city(value: str | None) -> np.ndarray:
        return scores(bundle.score(changed(row, "city", pa.array([value], pa.string()))))

    assert np.array_equal(with_city("atlantis"), with_city("el dorado"))
    for other in ("rome", None):  # The spec gives a missing city an id of its own.
        assert not np.array_equal(with_city("atlantis"), with_city(other))
    assert np.array_equal(scores(bundle.score(changed(row, "city", pa.nulls(1)))), with_city(None))
    without_price, infinite = (changed(row, "price", pa.array([price], pa.float64())) for price in (None, np.inf))
    assert bundle.score(infinite).equals(bundle.score(without_price))


def changed(rows: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows.drop_columns(["city"]),
            "the rows have no column 'city'; give it, with nulls where its values are missing.",
        ),
        (
            lambda rows: rows.rename_columns(["citi" if name == "city" else name for name in rows.column_names]),
            "the rows have no column 'city'; did you mean 'citi'?",
        ),
        (
            lambda rows: rows.append_column("city", rows["city"]),
            "the rows have several columns 'city'; keep one of them.",
        ),
        (
            lambda rows: changed(rows, "user", pa.array([None, "anna"])),
            "column 'user' holds text, but must hold int: row 1 has 'anna'.",
        ),
        (
            lambda rows: changed(rows, "city", pa.array([["rome"], None])),
            "column 'city' holds list<text>, but must hold text: row 0 has ['rome'].",
        ),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(
    bundle: Bundle, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    with pytest.raises(UserError) as error:
        bundle.score(change(raw_of_valid().slice(0, 2)))
    assert str(error.value).startswith(message)


def test_the_projector_of_a_run_has_the_raw_values_of_its_log(stem_bundle: Path, tmp_path: Path) -> None:
    run = shutil.copytree(stem_bundle / "stem", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    line = write_report(ReportOptions((str(run),), projector=("buy/city", "shared/hour"), projector_rows=4))
    assert "ids without raw values, as the log has no vocabulary for shared/hour;" in line
    board = run / "tensorboard"
    config = text_format.Parse((board / "projector_config.pbtxt").read_text(), ProjectorConfig())
    city, hour = ((board / each.metadata_path).read_text().splitlines() for each in config.embeddings)
    counted = pq.read_table(stem_bundle / "log/vocabulary/city.parquet", columns=["id", "value", "count"]).to_pylist()
    assert {row["value"] for row in counted} == {"rome", "oslo", "bonn"}
    expected = [f"{row['id']}\t{row['value']}\t{row['count']}" for row in counted if row["id"] < 4]
    # Id 1 is that of a missing city.
    assert city == ["id\tvalue\tcount", "0\t(unseen)\t", "1\t\t", *expected]
    assert hour == ["0", "1", "2", "3"]


@pytest.fixture(scope="module")
def calibrated_run(stem_bundle: Path) -> Path:
    """The run `stem` with a calibration.json."""
    run_ranks(1, calibrate_stem, stem_bundle)
    return stem_bundle / "stem-calibrated"


def test_one_task_of_a_calibrated_run_scores_as_beside_the_others_and_is_calibrated(
    stem_bundle: Path, calibrated_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, rows = bundle_of(stem_bundle, calibrated_run.name, tasks=("buy",)), raw_of_valid()
    printed = capsys.readouterr().out
    assert bundle.tasks == ("buy",)
    assert {table.name.partition("/")[0] for table in bundle.manifest.tables} == {"click", "buy", "shared"}
    assert "buy alone keeps the tables of click" in printed
    assert f"with the weights and calibration.json of {calibrated_run}" in printed
    predicted, calibrated = predictions(stem_bundle, "stem")["buy"], bundle.score(rows)["buy"]
    raw = bundle.score(rows, calibrated=False)["buy"].to_numpy()
    np.testing.assert_allclose(raw, predicted, rtol=0, atol=ROUNDING)
    assert calibrated.type == pa.float32()
    assert np.abs(calibrated.to_numpy() - raw).max() > 1e-3
    assert bundle.curves.keys() == {"buy"}
    # The curve is at most 1.5 / 4 / 0.25 times as steep as its prediction.
    np.testing.assert_allclose(calibrated.to_numpy(), calibrate(predicted, bundle.curves["buy"]), rtol=0, atol=1e-5)


@pytest.mark.long
def test_a_calibration_may_be_left_out(stem_bundle: Path, calibrated_run: Path) -> None:
    left_out = bundle_of(stem_bundle, calibrated_run.name, tasks=("buy",), calibration="none")
    assert not left_out.curves
    assert left_out.score(raw_of_valid()).equals(left_out.score(raw_of_valid(), calibrated=False))


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


def test_a_machine_without_torchrec_and_fbgemm_scores_and_refuses_to_train(stem_bundle: Path, tmp_path: Path) -> None:
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, raw_of_valid().schema) as writer:
        writer.write_table(raw_of_valid())
    program = f"""{HIDDEN}
import torch.distributed as dist
import pyarrow as pa
import stem_torchrec.serving.apply_deltas
from stem_torchrec.serving.bundle import load_bundle
rows = pa.ipc.open_file("rows.arrow").read_all()
bundle = load_bundle({str(stem_bundle / "bundle-stem")!r})
scored = bundle.score(rows)
assert not dist.is_initialized()
assert not [name for name in sys.modules if name.partition(".")[0] in ("torchrec", "fbgemm_gpu")]
[mapped] = [line for line in open("/proc/self/maps") if "tables.safetensors" in line]
print(scored["buy"].to_pylist())
from stem_torchrec.train import main
main()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 2, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), predictions(stem_bundle, "stem")["buy"], rtol=0, atol=ROUNDING)
    start = "error: torchrec is not installed: this machine can score bundles and prepare logs; for other commands run:"
    assert done.stderr.startswith(start)
    assert done.stderr.endswith(" [STEM-INSTALL]\n")
    assert done.stderr.count("\n") == 1


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
        (lambda f: (f / "vocabulary/city.parquet").unlink(), "BUNDLE/vocabulary/city.parquet is missing; copy the"),
        (lambda f: os.truncate(f / "tables.safetensors", 1000), "BUNDLE/tables.safetensors has 1000 bytes, but "),
        (lambda f: flip(f / "tables.safetensors"), "BUNDLE/tables.safetensors was changed after the export"),
        (lambda f: flip(f / "vocabulary/city.parquet"), "BUNDLE/vocabulary/city.parquet was changed after the export"),
        (lambda f: with_program(f, b"of a later torch"), "BUNDLE/model.pt2 cannot be loaded by torch "),
    ],
)
def test_a_damaged_bundle_is_refused(stem_bundle: Path, tmp_path: Path, damage: Callable, message: str) -> None:
    shutil.copytree(stem_bundle / "bundle-stem", tmp_path / "bundle")
    damage(tmp_path / "bundle")
    with pytest.raises(UserError) as error:
        load_bundle(tmp_path / "bundle")
    assert str(error.value).replace(str(tmp_path / "bundle"), "BUNDLE").startswith(message)
    assert "\n" not in str(error.value)


def test_a_compiled_program_is_taken_on_the_machine_that_it_was_compiled_for_alone(
    stem_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(stem_bundle / "bundle-stem", tmp_path / "bundle")
    (tmp_path / "bundle/compiled.pt2").write_bytes(b"of this machine")
    with_compiled(tmp_path / "bundle", this_machine())
    with pytest.raises(DamagedError, match=r"compiled\.pt2 cannot be loaded by torch "):
        load_bundle(tmp_path / "bundle")
    with_compiled(tmp_path / "bundle", machine_of("flags: of another processor"))
    assert scores(load_bundle(tmp_path / "bundle").score(raw_of_valid())).shape == (100, 2)


def with_compiled(folder: Path, machine: Machine) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["compiled"] = asdict(machine)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_processors_with_other_instructions_are_other_machines() -> None:
    intel = (
        "model name\t: Xeon\nflags\t\t: sse2 avx512f amx_tile\n\nmodel name\t: Xeon\nflags\t\t: sse2 avx512f amx_tile\n"
    )
    assert machine_of(intel).name == "Xeon"
    assert machine_of(intel) == machine_of(intel.replace("sse2 avx512f", "avx512f sse2").replace("Xeon", "Xeon 8"))
    assert machine_of(intel) != machine_of(intel.replace(" amx_tile", ""))
    assert machine_of("Features\t: fp asimd sve\n") != machine_of("Features\t: fp asimd\n")


def flip(file: Path) -> None:
    """Changes the last byte."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def with_program(folder: Path, program: bytes) -> None:
    """Puts other bytes into model.pt2, and their size and checksum into the manifest."""
    (folder / "model.pt2").write_bytes(program)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.pt2"] = {"size": len(program), "sha256": checksum(folder / "model.pt2")}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": ""}, "--run or --out is missing"),
        ({"out": "stem/best"}, "--out FOLDER/stem/best is a part of the run"),
        ({"out": "bundle-stem"}, "FOLDER/bundle-stem exists already; give another --out, or delete it."),
        ({"tasks": ("bye",)}, "--tasks bye is not a task of the run, only buy, click; did you mean 'buy'?"),
        ({"run": "nowhere"}, "there is no configuration 'FOLDER/nowhere/config.yaml'"),
        ({"run": "log"}, "there is no configuration 'FOLDER/log/config.yaml'"),
        ({"run": "unfinished"}, "FOLDER/unfinished/best holds no weights; a training run writes them at its first"),
        ({"run": "recalibrated"}, "FOLDER/recalibrated/calibration.json was fitted to other weights (sha256:0"),
        ({"log": "nowhere"}, "the log FOLDER/nowhere is not a folder of this machine; give a copy of its schema.json"),
        (
            {"log": "other-log"},
            "FOLDER/other-log is not the log that the run was trained on (the log has no",
        ),
        ({"log": "less-log"}, "FOLDER/less-log/vocabulary/city.parquet cannot be read ("),
    ],
)
def test_an_export_that_is_refused_leaves_nothing(odd_runs: Path, changes: dict, message: str) -> None:
    before = sorted(odd_runs.iterdir())
    options = {"run": "stem", "out": "new"} | changes
    paths = {name: str(odd_runs / value) if value else "" for name, value in options.items() if name != "tasks"}
    with pytest.raises(UserError) as error:
        export_run(ExportConfig(**(options | paths)))
    assert str(error.value).replace(str(odd_runs), "FOLDER").startswith(message)
    assert sorted(odd_runs.iterdir()) == before


@pytest.fixture(scope="module")
def odd_runs(stem_bundle: Path, calibrated_run: Path) -> Path:
    """`stem_bundle` with runs and logs that cannot be exported."""
    unfinished, recalibrated, less = (stem_bundle / name for name in ("unfinished", "recalibrated", "less-log"))
    for run in (unfinished, recalibrated):
        shutil.copytree(calibrated_run, run)
    shutil.rmtree(unfinished / "best")
    file = recalibrated / "calibration.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": f"sha256:{'0' * 64}"}))
    shutil.copytree(stem_bundle / "log", less)
    (less / "vocabulary/city.parquet").unlink()
    shutil.copytree(DATA / "log", stem_bundle / "other-log")
    return stem_bundle


def test_a_log_without_transforms_is_scored_from_ids_with_int8_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["--run", str(DATA / "run_format_1"), "--log", str(DATA / "log"), "--out", str(tmp_path / "bundle")]
    monkeypatch.setattr(sys, "argv", ["export.py", *line, "--tables", "int8"])
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
    dense = bundle.columns.dense[0]
    infinite = rows.set_column(rows.column_names.index(dense), dense, pa.array([0.0, np.inf, 0.0]))
    with pytest.raises(DataError, match=rf"^row 1, column '{dense}': inf "):
        bundle.score(infinite)
