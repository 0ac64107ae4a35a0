"""The run folder: its files, and who may use it.

config.yaml      the configuration; `--config` trains it again
schema.json      the columns of the log
plan.json        where the tables are
metrics.jsonl    losses, speeds and metrics by step; tensorboard/ shows the same
metrics.json     the best evaluation
best/            its weights
checkpoints/     what the run resumes from
profile/         where the time of a step goes, with --train.profile
nonfinite/       a batch whose loss is not finite
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from stem_torchrec.config import TrainConfig
from stem_torchrec.config.files import dump_config, what_is_trained
from stem_torchrec.config.formats import with_format, without_format
from stem_torchrec.config.yaml_text import parse_yaml, to_yaml
from stem_torchrec.data.schema import SCHEMA_FILE, Schema, schema_to_json
from stem_torchrec.metrics.multi_task import TaskMetrics, from_json
from stem_torchrec.runtime.errors import UnwritableError, UserError, reason_of
from stem_torchrec.runtime.paths import write_json, write_text
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.store_path import AnyPath, path_of
from stem_torchrec.training.configuration import load_config

CONFIG_FILE = "config.yaml"
PLAN_FILE = "plan.json"
METRICS_FILE = "metrics.json"
METRICS_FORMAT = 1
"""Format version of metrics.json."""
BEST_WEIGHTS = "best"


def create_run_folder(config: TrainConfig) -> AnyPath:
    """Creates the run folder and writes config.yaml; all ranks call it and get the same folder.

    If the folder holds a run of the same options, the run resumes in it, unless `config.resume` is never. Raises
    UserError on all ranks where the folder holds another run, or cannot be written.
    """

    def make() -> AnyPath:
        folder = path_of(config.output_dir) if config.output_dir else _folder_of_launch()
        if any((folder / name).exists() for name in (METRICS_FILE, BEST_WEIGHTS)) and config.resume == "never":
            raise UserError(f"{folder} holds a run already; give another --output-dir, or --resume auto to resume it.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / CONFIG_FILE, dump_config(config))
        except (OSError, UnwritableError) as error:
            raise UserError(f"the run folder {folder} cannot be written ({reason_of(error)}); give another.") from error
        return folder

    return from_first_rank(make)


def _folder_of_launch() -> Path:
    """A new folder below runs/, named by the time; the same folder again where a launcher restarts its ranks."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    now = f"runs/{datetime.now():%Y%m%d-%H%M%S}"
    if launch is None:
        return Path(now)
    if launch == "none":
        # The launch has no name, but the launcher's process stays the same when it restarts its ranks.
        stat = Path(f"/proc/{os.getppid()}/stat")
        since = stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else ""
        launch = f"torchrun-{os.getppid()}-{since}"
    launch = hashlib.sha256(launch.encode()).hexdigest()[:8]
    before = [folder for folder in sorted(Path("runs").glob(f"*-{launch}")) if not _has_ended(folder)]
    return before[-1] if before else Path(f"{now}-{launch}")


def best_so_far(folder: AnyPath) -> dict[str, TaskMetrics]:
    """The metrics of the best evaluation so far; all ranks call it."""
    return from_first_rank(lambda: from_json(read_metrics(folder)["valid"]))


def finish(folder: AnyPath) -> None:
    """Marks the run as ended; rank 0 calls it."""
    write_metrics(folder / METRICS_FILE, read_metrics(folder) | {"finished": True})


def write_metrics(path: AnyPath, content: Mapping[str, Any]) -> None:
    """Writes a metrics.json: the step of the best evaluation and its metrics. Raises UnwritableError."""
    write_json(path, with_format(content, METRICS_FORMAT))


def read_metrics(folder: AnyPath) -> dict[str, Any]:
    """What `write_metrics` took, from the metrics.json of a run; raises FormatError for a newer format."""
    path = folder / METRICS_FILE
    content: dict[str, Any] = without_format(json.loads(path.read_text()), METRICS_FORMAT, str(path))
    return content


def finished(config: TrainConfig) -> dict[str, TaskMetrics] | None:
    """The metrics of the best evaluation, if the run folder holds a run of these options that has ended; else None.

    All ranks call it. Raises UserError where the folder holds a run of other options that has ended.
    """

    def read() -> dict[str, TaskMetrics] | None:
        if config.output_dir is None or config.resume == "never":
            return None
        folder = path_of(config.output_dir)
        if not _has_ended(folder):
            return None
        metrics = read_metrics(folder)
        if what_is_trained(load_config(str(folder / CONFIG_FILE))) != what_is_trained(config):
            raise UserError(f"{folder} holds a run of other options; give another --output-dir.")
        return from_json(metrics["valid"])

    return from_first_rank(read)


def _has_ended(folder: AnyPath) -> bool:
    return (folder / METRICS_FILE).exists() and read_metrics(folder).get("finished", False)


def write_inputs(folder: AnyPath, schema: Schema, plan: str) -> None:
    """Writes schema.json and plan.json; rank 0 calls it. Raises UnwritableError."""
    write_text(folder / SCHEMA_FILE, schema_to_json(schema))
    write_text(folder / PLAN_FILE, plan)


def write_or_check(
    file: Path,
    contents: Mapping[str, Any],
    *,
    refusal: str,
    begun: bool = True,
    lock: AbstractContextManager[Any] | None = None,
) -> None:
    """Writes the purpose of a folder of runs as YAML, or checks that it has the same one, so that runs do not mix.

    Args:
        file: the YAML file; its folder is created.
        contents: the purpose of the folder.
        refusal: the error for a folder that has another purpose.
        begun: whether the folder holds any run yet.
        lock: held meanwhile, where several processes call this at once.

    Raises UserError with the refusal, or where the folder cannot be written.
    """
    text = to_yaml(dict(contents))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with lock or nullcontext():
            if begun and file.exists() and parse_yaml(file.read_text()) != parse_yaml(text):
                raise UserError(refusal)
            write_text(file, text)
    except (OSError, UnwritableError) as error:
        raise UserError(f"{file.parent} cannot be written ({reason_of(error)}); give another --out.") from error
