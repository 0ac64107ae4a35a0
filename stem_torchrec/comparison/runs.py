"""The runs of a comparison: each model with each seed, trained, tested, and kept so that an interrupted one goes on."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow.parquet as pq
from numpy.typing import NDArray

from stem_torchrec.comparison.diagnostics import GateWeights, parameters_of
from stem_torchrec.config import ModelConfig, TrainConfig
from stem_torchrec.evaluate import EvaluateConfig, evaluate_run
from stem_torchrec.metrics import to_json
from stem_torchrec.process import Process, from_first_rank
from stem_torchrec.run_folder import METRICS_LOG, write_json
from stem_torchrec.train import train

TEST_FILE = "test.json"
"""Of a run folder: what the test said; there when all else of the run is."""
PREDICTIONS = "predictions"

_ARCHS = ("stem", "single_task", "shared_bottom", "omoe", "mmoe", "ple", "aitm", "esmm", "me_mmoe", "me_ple")
MODELS: Mapping[str, Mapping[str, str]] = {
    **{arch: {"arch": arch} for arch in _ARCHS},
    "stem_reads_own": {"arch": "stem", "reads": "own_shared"},
    "stem_trains_all": {"arch": "stem", "trains": "all"},
    "stem_reads_own_trains_all": {"arch": "stem", "reads": "own_shared", "trains": "all"},
    "stem_gate_task": {"arch": "stem", "gate_input": "task"},
    "stem_gate_shared": {"arch": "stem", "gate_input": "shared"},
}
"""What can be compared: every model, and the ablations of STEM, by the options of the model that they set."""


@dataclass(frozen=True)
class Run:
    """One training run of a comparison."""

    model: str
    """A key of MODELS."""
    seed: int
    folder: Path

    @property
    def done(self) -> bool:
        """Whether the run is trained and tested."""
        return (self.folder / TEST_FILE).exists()

    def test(self) -> dict[str, Any]:
        """What the test said: metrics by task, gates, parameters, samples_per_second."""
        found: dict[str, Any] = json.loads((self.folder / TEST_FILE).read_text())
        return found

    def predictions(self) -> dict[str, NDArray[Any]]:
        """Columns of the test split by name, in the order of the log; see `evaluate.write_predictions`."""
        table = pq.read_table(self.folder / PREDICTIONS).sort_by("row")
        return {name: table.column(name).to_numpy() for name in table.column_names}


def with_model(config: TrainConfig, name: str) -> TrainConfig:
    """`config` with the options of a key of MODELS."""
    model: ModelConfig = replace(config.model, **MODELS[name])  # type: ignore[arg-type]
    return replace(config, model=model)


def train_and_test(run: Run, base: TrainConfig, split: str, process: Process) -> None:
    """Trains and tests a run; all ranks call it. One that was interrupted starts anew."""

    def clear() -> None:
        if run.folder.exists():
            shutil.rmtree(run.folder)

    from_first_rank(clear)
    train(replace(with_model(base, run.model), seed=run.seed, output_dir=str(run.folder)), process)
    gates = GateWeights()
    metrics = evaluate_run(
        EvaluateConfig(run=str(run.folder), split=split, predictions=str(run.folder / PREDICTIONS)),
        process,
        watch=gates.watch,
    )
    found = {"metrics": to_json(metrics), "gates": gates.mean(), "parameters": parameters_of(run.folder)}
    if process.is_first:
        found["samples_per_second"] = samples_per_second(run.folder)
        write_json(run.folder / TEST_FILE, found)
    # Nobody reads or starts over before the file is there.
    from_first_rank(lambda: None)


def samples_per_second(folder: Path) -> float:
    """Mean of the readings of a run's log after the first, which counts the warm-up."""
    lines = [json.loads(line) for line in (folder / METRICS_LOG).read_text().splitlines()]
    speeds = [line["train/samples_per_second"] for line in lines if "train/samples_per_second" in line]
    return mean(speeds[1:] or speeds)
