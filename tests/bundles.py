"""Small trained runs on a log of raw rows, exported as bundles, for tests."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.calibration.calibrate_run import CalibrateConfig, calibrate_run
from stem_torchrec.calibration.calibration_file import CALIBRATION_FILE, write_calibration
from stem_torchrec.calibration.curves import PlattCurve
from stem_torchrec.config import ModelConfig
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.models.table import MODELS as ALL_MODELS
from stem_torchrec.models.table import with_arch
from stem_torchrec.serving.bundle import Bundle, load_bundle
from stem_torchrec.serving.export_run import ExportConfig, export_run
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.run_evaluation import EvaluateConfig, evaluate_run
from stem_torchrec.training.trainer import train
from stem_torchrec.transfer.convert_layout import ConvertConfig, convert_run

from prepared_logs import ROWS, Rows, prepared, raw_rows
from runs import this_process

SPEC: dict[str, Any] = {
    "sources": {
        "log": {
            "files": "raw.csv",
            "columns": {"user": "int", "price": "float", "time": "int", "click": "int", "buy": "int"},
        }
    },
    "labels": {"click": "click", "buy": "buy"},
    "features": {
        "user": {"vocabulary": {"min_count": 3}},
        "city": {"missing": "own"},
        "tags": {"value": "split(tags, '|')", "pooling": "mean"},
        "hour": {"value": "time % 24", "identity": 24, "weights": "0.5 + 0.01 * (time % 7)"},
    },
    "dense": {"price": {"log": True, "standardize": True, "missing": {"fill": "mean"}}},
}
"""Vocabularies of numbers, text and lists, an id without one, weights of ids, and a number."""
STEM = STEMOptions(
    embedding_dim=8, num_layers=2, num_shared_experts=2, expert_hidden=(16, 8), gate_hidden=(8,), tower_hidden=(8,),
    embedding_std=0.5,
)  # fmt: skip
MODELS: dict[str, ModelConfig] = {arch: with_arch(STEM, arch) for arch in ALL_MODELS}
# With more layers the shared stream reads the tables of all groups.
MODELS["me_ple"] = with_arch(STEM, "me_ple", num_layers=1)
MODELS["stem-options"] = replace(STEM, expert="cross_norm", feature_gate=True, self_gate=True, covariance_weight=1.0)
RUNS = (*MODELS, "stem-packed")
TASKS = ("buy", "click")
ROUNDING = 1e-6
"""Of fp32 probabilities: FBGEMM and torch add up a bag in another order, and a product of fewer streams rounds anew."""


def raw() -> Rows:
    """The rows of the raw file; some have no user, city or price."""
    rows, rng = raw_rows(), np.random.default_rng(1)
    for name in ("user", "price"):
        rows[name] = [None if gone else value for gone, value in zip(rng.random(ROWS) < 0.1, rows[name], strict=True)]
    return rows | {"buy": rng.integers(0, 2, ROWS).tolist()}


def raw_of_valid() -> pa.Table:
    """The raw rows of the validation split, in its order, as a caller of `score` has them."""
    rows = pa.table(raw()).sort_by("time").slice(300)
    # The spec reads an empty text as null.
    city = [value or None for value in rows["city"].to_pylist()]
    tags = [value or None for value in rows["tags"].to_pylist()]
    return (
        rows.drop_columns(["click", "buy", "city", "tags"]).append_column("city", [city]).append_column("tags", [tags])
    )


def train_and_export(folder: Path, names: Sequence[str] = RUNS) -> None:
    """Prepares `log`, trains and exports each of the runs as `NAME` and `bundle-NAME`, predicts as `predicted-NAME`.

    One rank of a process group calls it.

    Args:
        folder: a new one, or one in which the run `stem` has been trained.
        names: of RUNS.
    """
    process = this_process()
    if not (folder / "log").exists():
        sources = {"log": SPEC["sources"]["log"] | {"files": str(folder / "raw.csv")}}
        prepared(folder, raw(), **(SPEC | {"sources": sources}))
    for name in names:
        if name == "stem-packed":
            convert_run(ConvertConfig(run=str(folder / "stem"), out=str(folder / name)), process)
        else:
            config = tiny()
            config = replace(
                config,
                data=replace(config.data, path=str(folder / "log"), batch_size=64),
                model=MODELS[name],
                train=replace(config.train, epochs=2, precision="bf16"),
                output_dir=str(folder / name),
            )
            train(config, process)
        predictions = str(folder / f"predicted-{name}")
        evaluate_run(EvaluateConfig(run=str(folder / name), precision="fp32", predictions=predictions), process)
        export_run(ExportConfig(run=str(folder / name), out=str(folder / f"bundle-{name}")))


def calibrate_stem(folder: Path) -> None:
    """Makes `stem-calibrated`, a copy of the run `stem` with a calibration.json. One rank calls it."""
    run = folder / "stem-calibrated"
    shutil.copytree(folder / "stem", run)
    calibration = calibrate_run(CalibrateConfig(run=str(run)), this_process())
    # Nothing predicts the labels, so the curves that fit are flat.
    steep = replace(calibration, platt={"buy": PlattCurve(a=1.5, b=-0.4), "click": PlattCurve(a=0.5, b=0.1)})
    write_calibration(run / CALIBRATION_FILE, steep)


def bundle_of(folder: Path, name: str, **options: Any) -> Bundle:
    """A bundle of a run with options of its own, exported once."""
    out = folder / "-".join(["bundle", name, *(str(value) for value in options.values())])
    if not out.exists():
        export_run(ExportConfig(run=str(folder / name), out=str(out), **options))
    return load_bundle(out)


def scores(table: pa.Table) -> np.ndarray:
    """(B, T)."""
    return np.stack([table[task].to_numpy() for task in table.column_names], axis=1)


def predictions(folder: Path, name: str) -> dict[str, np.ndarray]:
    """What evaluate.py predicts for the validation split, by task."""
    table = pq.read_table(folder / f"predicted-{name}").sort_by("row")
    return {task: table[f"prediction/{task}"].to_numpy() for task in TASKS}
