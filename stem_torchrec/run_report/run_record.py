"""What a run folder tells about its run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.calibration.calibration_file import CALIBRATION_FILE, Calibration, read_calibration
from stem_torchrec.checkpoints.folder import complete_steps
from stem_torchrec.checkpoints.resume import checkpoints_folder
from stem_torchrec.config import TrainConfig
from stem_torchrec.config.formats import FormatError
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import SCHEMA_FILE, Schema, load_schema
from stem_torchrec.run_report.reliability import Reliability, reliability_of
from stem_torchrec.run_report.starts import Start, starts_of
from stem_torchrec.runtime.errors import DamagedError, UserError
from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.sharding.plan_file import StoredTable, tables_of_plan
from stem_torchrec.starting.record import StartRecord, read_start
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.metrics_log import read_metrics_log
from stem_torchrec.training.run_folder import (
    CONFIG_FILE,
    METRICS_FILE,
    METRICS_LOG,
    PLAN_FILE,
    StoredMetrics,
    read_metrics,
)

PREDICTIONS = "predictions"
"""The folder in a run folder that calibration curves are drawn from."""


@dataclass(frozen=True)
class Series:
    """Numbers by step."""

    steps: NDArray[np.int64]
    """(N,), ascending."""
    values: NDArray[np.float64]
    """(N,), NaN where the log has null."""


@dataclass(frozen=True)
class RunRecord:
    """A run, finished or not.

    Example::

        RunRecord.read(Path("runs/a"), "a").series("valid/like/auc").values  # array([0.71, 0.78])
    """

    name: str
    """What tells it apart on the page."""
    folder: AnyPath
    config: TrainConfig
    schema: Schema
    columns: Columns
    """Of the log, those that it reads."""
    log: Sequence[Mapping[str, Any]]
    """The lines of metrics.jsonl; [] without the file."""
    best: StoredMetrics | None
    """None before the first evaluation."""
    plan: Mapping[str, StoredTable]
    """By table; {} without plan.json, as of a converted run."""
    world_size: int | None
    """Of the plan."""
    start: StartRecord | None
    """What it began with; None for a run of an earlier version."""

    @classmethod
    def read(cls, folder: AnyPath, name: str) -> "RunRecord":
        """Reads a run folder; raises UserError where it is none, DamagedError where a file of it is damaged."""
        missing = [each for each in (CONFIG_FILE, SCHEMA_FILE) if not (folder / each).exists()]
        if missing:
            raise UserError(f"{folder} is no run folder: it has no {missing[0]}; give the --output-dir of a training.")
        config, schema = load_config(str(folder / CONFIG_FILE)), load_schema(str(folder))
        columns = Columns.select(schema, features=config.data.features, labels=config.data.labels)
        log, (plan, world_size) = folder / METRICS_LOG, _read_plan(folder / PLAN_FILE)
        return cls(
            name=name,
            folder=folder,
            config=config,
            schema=schema,
            columns=columns,
            log=read_metrics_log(log) if log.exists() else [],
            best=read_metrics(folder, columns.labels) if (folder / METRICS_FILE).exists() else None,
            plan=plan,
            world_size=world_size,
            start=read_start(folder),
        )

    @property
    def tasks(self) -> Sequence[str]:
        """The labels that it trains on."""
        return self.columns.labels

    @property
    def steps(self) -> int:
        """The last step of the log."""
        return max((line["step"] for line in self.log), default=0)

    def series(self, name: str) -> Series:
        """The numbers of a name of the log, empty where it has none."""
        lines = [(line["step"], line[name]) for line in self.log if name in line]
        values = np.array([np.nan if value is None else value for _, value in lines], dtype=float)
        return Series(np.array([step for step, _ in lines], dtype=np.int64), values)

    def names(self, prefix: str) -> list[str]:
        """The names in the log that begin so, in its order."""
        return list(dict.fromkeys(name for line in self.log for name in line if name.startswith(prefix)))

    def last(self, name: str) -> float | None:
        """The last number of a name; None where there is none."""
        values = self.series(name).values
        return None if not len(values) or np.isnan(values[-1]) else float(values[-1])

    @cached_property
    def starts(self) -> list[Start]:
        """See `starts_of`."""
        return starts_of(self.folder)

    @cached_property
    def reliability(self) -> dict[str, Reliability]:
        """By task, from the predictions in the run folder; {} without them."""
        folder = self.folder / PREDICTIONS
        binary = [task for task in self.tasks if task not in self.columns.not_binary]
        return reliability_of(folder, binary) if folder.is_dir() else {}

    @cached_property
    def calibration(self) -> Calibration | None:
        """What stem-calibrate has written into the run folder; raises UserError if it cannot be read."""
        file = self.folder / CALIBRATION_FILE
        return read_calibration(file, weights=None) if file.exists() else None

    @property
    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints that it could resume from, the newest first."""
        return complete_steps(checkpoints_folder(self.config.checkpoint, self.folder))

    @property
    def kept_batches(self) -> int:
        """Batches that were kept because their loss was not finite."""
        folder = self.folder / "nonfinite"
        return sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0


def _read_plan(path: AnyPath) -> tuple[Mapping[str, StoredTable], int | None]:
    """The tables of a plan.json and its number of ranks, or ({}, None) without the file; raises DamagedError."""
    if not path.exists():
        return {}, None
    with path.open("rb") as file:
        content = bytes(file.read())
    try:
        return tables_of_plan(content), parse_json(content)["world_size"]
    except FormatError:
        raise
    except UserError as error:
        raise DamagedError(f"{path} is damaged: {error} Delete it to see the run without its plan.") from error
