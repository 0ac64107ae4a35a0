"""The runs of a comparison: each model with each seed, trained, tested, and kept so that an interrupted one goes on."""

import gc
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any, get_args

import pyarrow.parquet as pq
from numpy.typing import NDArray

from stem_torchrec.checkpoints.resume import checkpoints_folder
from stem_torchrec.comparison.diagnostics import GateWeights
from stem_torchrec.config import ModelConfig, TrainConfig
from stem_torchrec.config.files import load_config, what_is_trained
from stem_torchrec.config.literals import Arch
from stem_torchrec.metrics.multi_task import to_json
from stem_torchrec.models.build import groups_with_tables
from stem_torchrec.runtime.errors import DamagedError, DivergedError
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.training.metrics_log import METRICS_LOG
from stem_torchrec.training.run_evaluation import EvaluateConfig, evaluate_run
from stem_torchrec.training.run_folder import CONFIG_FILE, write_json
from stem_torchrec.training.trainer import train
from stem_torchrec.training.watched_metric import Metrics

TEST_FILE = "test.json"
"""Of a run folder: what the test said; there when all else of the run is."""
PREDICTIONS = "predictions"

MODELS: Mapping[str, Mapping[str, str]] = {
    **{arch: {"arch": arch} for arch in get_args(Arch)},
    "stem_reads_own": {"arch": "stem", "reads": "own_shared"},
    "stem_trains_all": {"arch": "stem", "trains": "all"},
    "stem_gate_task": {"arch": "stem", "gate_input": "task"},
    "stem_gate_shared": {"arch": "stem", "gate_input": "shared"},
}
"""What can be compared: every model, and the ablations of STEM, by the options of the model that they set. A loss
trains at most what its gate reads, so where that is own and shared, training all is the same model."""


@dataclass(frozen=True)
class Part:
    """What is trained at once: a model, or one task's of the single-task models."""

    model: str
    """A key of MODELS."""
    labels: tuple[str, ...]
    alone: bool
    """Whether it is one of several models, each for a task."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.model}/{self.labels[0]}" if self.alone else self.model

    def of(self, config: TrainConfig) -> TrainConfig:
        """`config`, whose labels are named, as this part trains it: with its own tasks' weights and learning rates."""
        weights = dict(zip(config.data.labels, config.model.task_weights, strict=bool(config.model.task_weights)))
        options: Mapping[str, Any] = {
            **MODELS[self.model],
            "task_weights": tuple(weights[t] for t in self.labels if weights),
        }
        model: ModelConfig = replace(config.model, **options)
        groups = groups_with_tables(model.arch, self.labels)
        rates = {group: rate for group, rate in config.sparse.group_learning_rates.items() if group in groups}
        metric = config.train.metric.partition("/")[0] if self.alone else config.train.metric
        return replace(
            config,
            model=model,
            data=replace(config.data, labels=self.labels),
            sparse=replace(config.sparse, group_learning_rates=rates),
            train=replace(config.train, metric=metric),
        )


def parts_of(model: str, labels: Sequence[str]) -> list[Part]:
    """The parts of a model: single-task models stop, and are tuned, each by its own task."""
    if MODELS[model]["arch"] == "single_task":
        return [Part(model, (label,), alone=True) for label in labels]
    return [Part(model, tuple(labels), alone=False)]


@dataclass(frozen=True)
class Run:
    """One model with one seed."""

    model: str
    """A key of MODELS."""
    seed: int
    folder: Path

    @property
    def done(self) -> bool:
        """Whether the run is trained and tested."""
        return (self.folder / TEST_FILE).exists()

    def test(self) -> dict[str, Any]:
        """What the test said: metrics by task, gates, samples_per_second and folders of the parts; or `diverged`."""
        found: dict[str, Any] = json.loads((self.folder / TEST_FILE).read_text())
        return found

    def folders(self) -> list[Path]:
        """The run folders of the parts."""
        return [self.folder / part for part in self.test()["parts"]]

    def predictions(self) -> dict[str, NDArray[Any]]:
        """Columns of the test split by name, in the order of the log; see `PredictionsFile`."""
        columns: dict[str, NDArray[Any]] = {}
        for folder in self.folders():
            table = pq.read_table(folder / PREDICTIONS).sort_by("row")
            columns |= {name: table.column(name).to_numpy() for name in table.column_names}
        return columns


def train_part(config: TrainConfig, process: Process, *, ending: Event | None = None) -> Metrics:
    """Trains in `config.output_dir`, or goes on with what was interrupted there; all ranks call it.

    What is there of other options, or damaged, makes way. Returns the best evaluation; raises as `train` does.
    """
    folder = Path(config.output_dir or "")

    def make_way() -> None:
        file = folder / CONFIG_FILE
        if file.exists() and what_is_trained(load_config(str(file))) != what_is_trained(config):
            shutil.rmtree(folder)

    from_first_rank(make_way)
    try:
        return train(config, process, ending=ending)
    except DamagedError as error:
        log_rank0(f"note: {error}; this run starts anew")
        from_first_rank(lambda: shutil.rmtree(folder))
        return train(config, process, ending=ending)


def train_and_test(
    run: Run, configs: Mapping[Part, TrainConfig], split: str, process: Process, *, ending: Event | None = None
) -> None:
    """Trains and tests a run's parts, each by its configuration; all ranks call it. One interrupted goes on.

    Args:
        run: to be done.
        configs: of its parts.
        split: to test on.
        process: this rank.
        ending: see `train`.
    """
    found: dict[str, Any] = {"parts": [], "metrics": {}, "gates": {}}
    seconds = 0.0
    for part, config in configs.items():
        folder = run.folder / part.labels[0] if part.alone else run.folder
        try:
            train_part(replace(part.of(config), seed=run.seed, output_dir=str(folder)), process, ending=ending)
        except DivergedError as error:
            log_rank0(f"{part.name}, seed {run.seed}: {error}")
            found = {"diverged": f"{part.name}, seed {run.seed}: {error}"}
        # Sharded modules live in cycles; without this the next one would come on top of them.
        gc.collect()
        if "diverged" in found:
            break
        gates = GateWeights(process.device)
        predictions = folder / PREDICTIONS
        from_first_rank(partial(_remove, predictions, checkpoints_folder(config.checkpoint, folder)))
        test = EvaluateConfig(run=str(folder), split=split, predictions=str(predictions))
        found["metrics"] |= to_json(evaluate_run(test, process, watch=gates.watch))
        gc.collect()
        found["gates"] |= gates.mean()
        found["parts"].append(part.labels[0] if part.alone else ".")
        speed = from_first_rank(partial(samples_per_second, folder))
        seconds += 1 / (speed or math.nan)
    if "diverged" not in found:
        found["samples_per_second"] = None if math.isnan(seconds) else 1 / seconds
    from_first_rank(lambda: write_json(run.folder / TEST_FILE, found))


def _remove(*folders: Path | str) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def samples_per_second(folder: Path) -> float | None:
    """Median of the readings of a run's log, as those after a start count the warm-up; None for a log without any."""
    lines = [json.loads(line) for line in (folder / METRICS_LOG).read_text().splitlines()]
    speeds = [line["train/samples_per_second"] for line in lines if "train/samples_per_second" in line]
    return median(speeds) if speeds else None
