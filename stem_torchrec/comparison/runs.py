"""The runs of a comparison: each model with each seed, trained and tested; an interrupted run resumes."""

import gc
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

import pyarrow.parquet as pq
from numpy.typing import NDArray

from stem_torchrec.checkpoints.resume import checkpoints_folder
from stem_torchrec.comparison.parts import Part
from stem_torchrec.config import TrainConfig
from stem_torchrec.config.files import what_is_trained
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import from_dict
from stem_torchrec.metrics.multi_task import to_json
from stem_torchrec.runtime.errors import DamagedError, UserError, reason_of
from stem_torchrec.runtime.paths import write_json
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.gate_weights import GateWeights
from stem_torchrec.training.left_out import LeftOut, trained_or_left_out
from stem_torchrec.training.metrics_log import read_metrics_log
from stem_torchrec.training.open_fields import with_open_fields
from stem_torchrec.training.run_evaluation import EvaluateConfig, evaluate_run
from stem_torchrec.training.run_folder import CONFIG_FILE, METRICS_LOG
from stem_torchrec.training.trainer import train
from stem_torchrec.training.watched_metric import Metrics

TEST_FILE = "test.json"
"""The test results in a run's folder; written last, so it marks a run that is done."""
PREDICTIONS = "predictions"


@dataclass(frozen=True)
class _Tested:
    """What TEST_FILE holds."""

    parts: tuple[str, ...]
    """Folders of the parts."""
    metrics: dict[str, dict[str, float | int | None]]
    """As `to_json` returns them."""
    gates: dict[str, dict[str, dict[str, float]]]
    """As `GateWeights.mean` returns them."""
    samples_per_second: float | None


@dataclass(frozen=True)
class _Diverged:
    """What TEST_FILE of an earlier version holds of a run that diverged."""

    diverged: str
    """Which part, and why."""


@dataclass(frozen=True)
class Run:
    """One model with one seed."""

    model: str
    """Its name, as in --models."""
    seed: int
    folder: Path
    log: int = 1
    """The number of its log, of several."""

    @property
    def done(self) -> bool:
        """Whether the run is trained and tested."""
        return (self.folder / TEST_FILE).exists()

    def test_results(self) -> dict[str, Any]:
        """The fields of a _Tested, or of a LeftOut."""
        return read_results(self.folder / TEST_FILE, _Tested, LeftOut, _Diverged)

    def left_out(self) -> str | None:
        """Why the model is left out, if the run is done and could not be trained."""
        results = self.test_results() if self.done else {}
        return results.get("left_out", results.get("diverged"))

    def folders(self) -> list[Path]:
        """The run folders of the parts."""
        return [self.folder / part for part in self.test_results()["parts"]]

    def predictions(self) -> dict[str, NDArray[Any]]:
        """Columns of the test split by name, in the order of the log; see `PredictionsFile`."""
        columns: dict[str, NDArray[Any]] = {}
        for folder in self.folders():
            table = pq.read_table(folder / PREDICTIONS).sort_by("row")
            columns |= {name: table.column(name).to_numpy() for name in table.column_names}
        return columns


def read_results(file: Path, kind: type, *others: type) -> dict[str, Any]:
    """What `write_json` wrote for a run that is done: the fields of one of these dataclasses, told apart by the first.

    Raises UserError if the file is damaged.
    """
    try:
        results = parse_json(file.read_bytes())
        kinds = [each for each in others if isinstance(results, dict) and fields(each)[0].name in results]
        from_dict((kinds or [kind])[0], results)
    except ValueError as error:
        raise UserError(
            f"{file} is damaged ({reason_of(error)}); delete it, and the same command makes it again."
        ) from error
    return results


def train_part(config: TrainConfig, process: Process, *, ending: Event | None = None) -> Metrics:
    """Trains in `config.output_dir`, or resumes the interrupted run there; all ranks call it.

    Deletes an existing run that has other options or is damaged. Returns the best evaluation; raises as `train` does.
    """
    # So that the configuration is the one that the run has in its folder.
    config = with_open_fields(config, config.data.path or "", process)
    folder = Path(config.output_dir or "")

    def delete_other_run() -> None:
        file = folder / CONFIG_FILE
        if file.exists() and what_is_trained(load_config(str(file))) != what_is_trained(config):
            shutil.rmtree(folder)

    from_first_rank(delete_other_run)
    try:
        return train(config, process, ending=ending)
    except DamagedError as error:
        log_rank0(f"note: {error}; this run restarts from the beginning")
        from_first_rank(lambda: shutil.rmtree(folder))
        return train(config, process, ending=ending)


def train_and_test(
    run: Run,
    parts: Sequence[Part],
    config: TrainConfig,
    *,
    split: str,
    process: Process,
    ending: Event | None = None,
) -> None:
    """Trains and tests the parts of a run and writes TEST_FILE; all ranks call it. An interrupted part resumes.

    The file has a LeftOut where a part cannot be trained.

    Args:
        run: a run that is not done.
        parts: of its model, with the settings that were chosen for them.
        config: of the comparison.
        split: the split to test on.
        process: this rank.
        ending: see `train`.
    """

    def leave_out(left_out: LeftOut) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.folder / TEST_FILE, asdict(left_out))

    tested: list[_Tested] = []
    for part in parts:
        results = trained_or_left_out(
            partial(_train_and_test, run, part, config, split=split, process=process, ending=ending),
            process,
            name=f"{part.name}, seed {run.seed}",
            leave_out=leave_out,
        )
        if results is None:
            return
        tested.append(results)
    speeds = [each.samples_per_second for each in tested]
    all_parts = _Tested(
        parts=tuple(name for each in tested for name in each.parts),
        metrics={task: values for each in tested for task, values in each.metrics.items()},
        gates={layer: values for each in tested for layer, values in each.gates.items()},
        samples_per_second=1 / sum(1 / speed for speed in speeds if speed) if all(speeds) else None,
    )
    from_first_rank(lambda: write_json(run.folder / TEST_FILE, asdict(all_parts)))


def _train_and_test(
    run: Run, part: Part, config: TrainConfig, *, split: str, process: Process, ending: Event | None
) -> _Tested:
    name = part.labels[0] if part.alone else "."
    folder = run.folder / name
    train_part(replace(part.configure(config), seed=run.seed, output_dir=str(folder)), process, ending=ending)
    # Sharded modules live in reference cycles; without this they are in memory beside those of the test.
    gc.collect()
    gates, predictions = GateWeights(process.device), folder / PREDICTIONS
    from_first_rank(partial(_remove, predictions, checkpoints_folder(config.checkpoint, folder)))
    # Without --data.spaces on all rows, also of a model with spaces of its own.
    test = EvaluateConfig(str(folder), split=split, predictions=str(predictions), all_rows=not config.data.spaces)
    metrics = to_json(evaluate_run(test, process, watch=gates.watch))
    return _Tested((name,), metrics, gates.mean(), from_first_rank(partial(samples_per_second, folder)))


def _remove(*folders: Path | str) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def samples_per_second(folder: Path) -> float | None:
    """Median over a run's log, since the first readings include the warm-up; None for a log without readings."""
    lines = read_metrics_log(folder / METRICS_LOG)
    speeds = [line["train/samples_per_second"] for line in lines if "train/samples_per_second" in line]
    return median(speeds) if speeds else None
