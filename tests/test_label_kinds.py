"""Tasks whose labels are numbers or levels: data, losses, metrics, runs and bundles beside those of binary tasks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stem_torchrec.config import DataConfig, TrainConfig
from stem_torchrec.metrics.multi_task import to_json
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.serving.bundle import load_bundle
from stem_torchrec.serving.export_run import ExportConfig, export_run
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.run_evaluation import EvaluateConfig, evaluate_run
from stem_torchrec.training.trainer import Trainer

from distributed import run_ranks
from mixed_logs import TASKS, mixed_table, write_mixed_log
from runs import this_process

MODEL = STEMOptions(
    embedding_dim=4, num_shared_experts=2, expert_hidden=(16,), gate_hidden=(8,), tower_hidden=(8,), embedding_std=0.1
)


def config_for(folder: Path, **train: object) -> TrainConfig:
    config = tiny()
    return replace(
        config,
        output_dir=str(folder / "run"),
        data=DataConfig(path=str(folder / "log"), batch_size=64, num_workers=0),
        model=MODEL,
        dense=replace(config.dense, learning_rate=0.01),
        sparse=replace(config.sparse, learning_rate=0.1),
        train=replace(config.train, epochs=6, metric="auc", **train),
    )


def use_everything(folder: Path) -> None:
    process = this_process()
    metrics = Trainer(config_for(folder), process).run()
    evaluation = EvaluateConfig(str(folder / "run"), predictions=str(folder / "predictions"))
    assert to_json(evaluate_run(evaluation, process)) == to_json(metrics)
    export_run(ExportConfig(str(folder / "run"), str(folder / "bundle")))


def test_a_mixed_log_goes_through_train_evaluate_export_and_score(tmp_path: Path) -> None:
    write_mixed_log(tmp_path / "log")
    run_ranks(1, use_everything, tmp_path)
    rows = mixed_table(300, seed=1)
    predicted = pq.read_table(tmp_path / "predictions")
    bundle = load_bundle(tmp_path / "bundle")
    scores = bundle.score(rows)
    for task in TASKS:
        np.testing.assert_allclose(scores[task], predicted[f"prediction/{task}"], rtol=2e-6)
    print(json.loads((tmp_path / "run/metrics.json").read_text()))
