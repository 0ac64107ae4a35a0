"""The run folder: its files, and how they are written and read.

config.yaml      the configuration; `--config` trains it again
schema.json      the columns of the log
plan.json        where the tables are
start.json       the log, what its ids mean, and the run that this one started from
metrics.jsonl    losses, speeds and metrics by step; tensorboard/ shows the same
metrics.json     the best evaluation
best/            its weights
best_by_task/    the weights of each task's best evaluation, with --train.best-by-task
checkpoints/     what the run resumes from
deltas/          what changed, with --delta.steps or --delta.minutes
profile/         where the time of a step goes, with --train.profile
nonfinite/       a batch whose loss is not finite
mlflow_id        which run of MLflow has its numbers, with STEM_TRACKERS=mlflow
calibration.json curves from predictions to probabilities, of stem-calibrate
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from stem_torchrec.checkpoints.compatibility import Rows
from stem_torchrec.checkpoints.weights import BEST_WEIGHTS as BEST_WEIGHTS
from stem_torchrec.config.files import CONFIG_FILE as CONFIG_FILE
from stem_torchrec.config.formats import FormatError, with_format, without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.data.schema import SCHEMA_FILE, Schema, schema_to_json
from stem_torchrec.metrics.multi_task import from_json
from stem_torchrec.runtime.errors import DamagedError, reason_of
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.owner_file import launch_id
from stem_torchrec.runtime.paths import write_json, write_text
from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.starting.record import START_FILE, StartRecord, write_start
from stem_torchrec.tracking.mlflow_tracker import ID_FILE

BEST_BY_TASK = "best_by_task"
"""The folder of the weights of each task's best evaluation, in that of a run."""
PLAN_FILE = "plan.json"
METRICS_FILE = "metrics.json"
METRICS_FORMAT = 2
"""Format version of metrics.json."""
METRICS_LOG = "metrics.jsonl"
RUN_FILES = (
    *(CONFIG_FILE, SCHEMA_FILE, PLAN_FILE, START_FILE, METRICS_FILE, f"{METRICS_FILE}.best", METRICS_LOG, ID_FILE),
    *(BEST_WEIGHTS, f"{BEST_WEIGHTS}.new", f"{BEST_WEIGHTS}.old"),
    *(BEST_BY_TASK, "checkpoints", "deltas", "tensorboard", "profile", "nonfinite"),
)
"""What tells that a folder holds a run, however little the run has written."""


@dataclass(frozen=True)
class StoredMetrics:
    """What metrics.json holds."""

    step: int
    """The step of the best evaluation."""
    valid: dict[str, dict[str, float | int | None]]
    """Its metrics, as `to_json` returns them."""
    finished: bool = False
    """Whether the run has ended."""
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    """`data.footers.contents` of the splits of a run that has ended; earlier versions did not write it."""


def finish(folder: AnyPath, lock: FolderLock, rows: Rows) -> None:
    """Marks the run as ended, on these rows; rank 0 calls it. Raises UserError if `lock` has lost the folder."""
    lock.confirm()
    of_log = {split: dict(contents) for split, contents in rows.items()}
    write_metrics(folder / METRICS_FILE, replace(read_metrics(folder), finished=True, rows=of_log))


def has_ended(folder: AnyPath) -> bool:
    """Whether the folder holds a run that has ended; raises as `read_metrics` does."""
    return (folder / METRICS_FILE).exists() and read_metrics(folder).finished


def write_metrics(path: AnyPath, metrics: StoredMetrics) -> None:
    """Writes a metrics.json. Raises UnwritableError."""
    write_json(path, with_format(to_dict(metrics), METRICS_FORMAT))


def read_metrics(folder: AnyPath, tasks: Collection[str] = ()) -> StoredMetrics:
    """What `write_metrics` took, from the metrics.json of a run.

    Args:
        folder: the run folder.
        tasks: that the run has, if the caller knows them.

    Raises DamagedError for a file that is not whole or has been changed, FormatError for a newer format.
    """
    path = folder / METRICS_FILE
    try:
        metrics = from_dict(StoredMetrics, without_format(parse_json(path.read_text()), METRICS_FORMAT, str(path)))
        from_json(metrics.valid)
    except FormatError:
        raise
    # TypeError: a metric is missing or unknown.
    except (ValueError, TypeError) as error:
        raise DamagedError(
            f"{path} is damaged ({reason_of(error)}); delete it, and the same command resumes from the last checkpoint "
            "or starts again."
        ) from error
    if tasks and set(metrics.valid) != set(tasks):
        raise DamagedError(
            f"{path} has metrics of {', '.join(metrics.valid)}, not of {', '.join(tasks)}; delete it to evaluate again."
        )
    return metrics


def write_inputs(folder: AnyPath, schema: Schema, plan: str, start: StartRecord) -> None:
    """Writes schema.json, plan.json and start.json; rank 0 calls it. Raises UnwritableError."""
    write_text(folder / SCHEMA_FILE, schema_to_json(schema))
    write_text(folder / PLAN_FILE, plan)
    write_start(folder, start)


def launch_name() -> str:
    """What the names of the folders of a launch end with; empty without a launcher."""
    return launch_id() and hashlib.sha256(launch_id().encode()).hexdigest()[:8]


def folders_of_launch() -> list[Path]:
    """The folders that runs of this launch have got without an option, the newest first; none without a launcher."""
    return sorted(Path("runs").glob(f"*-{launch_name()}"), reverse=True) if launch_name() else []
