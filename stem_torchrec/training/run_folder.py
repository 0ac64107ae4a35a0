"""The run folder: config.yaml, plan.json, metrics.jsonl, metrics.json, TensorBoard files, profile and best weights."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter

from stem_torchrec.config import TrainConfig
from stem_torchrec.config.files import dump_config, load_config, what_is_trained
from stem_torchrec.data.schema import SCHEMA_FILE, Schema, schema_to_dict
from stem_torchrec.metrics.multi_task import TaskMetrics, from_json
from stem_torchrec.runtime.errors import UnwritableError, UserError, reason_of
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.progress import log_rank0

CONFIG_FILE = "config.yaml"
PLAN_FILE = "plan.json"
METRICS_FILE = "metrics.json"
METRICS_LOG = "metrics.jsonl"
BEST_WEIGHTS = "best"


def create_run_folder(config: TrainConfig) -> Path:
    """Makes the run folder and writes config.yaml; all ranks call it and get the same folder.

    A folder that holds a run of the same options is taken, for the run to go on, unless `config.resume` is never.
    Raises UserError, on all ranks, where it holds another run, or cannot be made.
    """

    def make() -> Path:
        folder = Path(config.output_dir) if config.output_dir else _folder_of_launch()
        if any((folder / name).exists() for name in (METRICS_FILE, BEST_WEIGHTS)) and config.resume == "never":
            raise UserError(f"{folder} holds a run already; give another --output-dir, or --resume auto to go on.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / CONFIG_FILE, dump_config(config))
        except (OSError, UnwritableError) as error:
            raise UserError(f"the run folder {folder} cannot be written ({reason_of(error)}); give another.") from error
        return folder

    return from_first_rank(make)


def _folder_of_launch() -> Path:
    """A new folder below runs/, named by the time; the one of before where a launcher starts its run again."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    now = f"runs/{datetime.now():%Y%m%d-%H%M%S}"
    if launch is None:
        return Path(now)
    if launch == "none":
        # Nobody has named the launch; the launcher itself lives on when it starts its ranks again.
        stat = Path(f"/proc/{os.getppid()}/stat")
        since = stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else ""
        launch = f"torchrun-{os.getppid()}-{since}"
    launch = hashlib.sha256(launch.encode()).hexdigest()[:8]
    before = [folder for folder in sorted(Path("runs").glob(f"*-{launch}")) if not _has_ended(folder)]
    return before[-1] if before else Path(f"{now}-{launch}")


def best_so_far(folder: Path) -> dict[str, TaskMetrics]:
    """The best evaluation's metrics; all ranks call it."""
    return from_first_rank(lambda: from_json(json.loads((folder / METRICS_FILE).read_text())["valid"]))


def finish(folder: Path) -> None:
    """Notes that the run has ended; rank 0 calls it."""
    write_json(folder / METRICS_FILE, json.loads((folder / METRICS_FILE).read_text()) | {"finished": True})


def finished(config: TrainConfig) -> dict[str, TaskMetrics] | None:
    """The best evaluation's metrics, where the run folder holds a run of these options that has ended.

    All ranks call it. Raises UserError where it holds one of other options.
    """

    def read() -> dict[str, TaskMetrics] | None:
        folder = Path(config.output_dir or "")
        if config.output_dir is None or config.resume == "never":
            return None
        if not _has_ended(folder):
            return None
        found = json.loads((folder / METRICS_FILE).read_text())
        if what_is_trained(load_config(str(folder / CONFIG_FILE))) != what_is_trained(config):
            raise UserError(f"{folder} holds a run already, of other options; give another --output-dir.")
        return from_json(found["valid"])

    return from_first_rank(read)


def _has_ended(folder: Path) -> bool:
    file = folder / METRICS_FILE
    return file.exists() and json.loads(file.read_text()).get("finished", False)


class MetricsLog:
    """Numbers by step, on rank 0: a line of metrics.jsonl and points in TensorBoard for each call.

    A full disk does not end the run: lines wait until there is room, and TensorBoard ends.

    Args:
        folder: of the run.
        after: step after which the run goes on; what the files hold of later ones is dropped.
        evaluate: whether the evaluation after that step is still to come.

    All ranks make it; raises UnwritableError on all of them.
    """

    def __init__(self, folder: Path, *, after: int = 0, evaluate: bool = False) -> None:
        self._file: FileIO | None = None
        self._board: SummaryWriter | None = None
        self._waiting = b""

        def holds(line: str) -> bool:
            # The last one may have been cut off.
            values = json.loads(line) if line.endswith("}") else {"step": math.inf}
            evaluation = any(name.startswith("valid/") for name in values)
            return values["step"] < after + (not (evaluate and evaluation))

        def open_files() -> None:
            path = folder / METRICS_LOG
            lines = path.read_text().splitlines() if path.exists() and after else []
            write_text(path, "".join(f"{line}\n" for line in lines if holds(line)))
            self._file = path.open("ab", buffering=0)
            if not after:
                shutil.rmtree(folder / "tensorboard", ignore_errors=True)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1 if after else None)

        from_first_rank(open_files)

    def write(self, step: int, values: dict[str, float | int | None]) -> None:
        """Writes `{"step": step, **values}`; names like `valid/like/auc` become TensorBoard charts."""
        if self._file is None:
            return
        lines_wait = bool(self._waiting)
        self._waiting += (json.dumps({"step": step, **values}) + "\n").encode()
        try:
            self._write()
        except OSError as error:
            if not lines_wait:
                log_rank0(f"step {step}  {METRICS_LOG} cannot be written ({reason_of(error)}); its lines wait for room")
        try:
            for name, value in values.items():
                if value is not None and self._board is not None:
                    self._board.add_scalar(name, value, step)
        except OSError as error:
            log_rank0(f"step {step}  TensorBoard's files cannot be written ({reason_of(error)}), and end here")
            self._board = None

    def _write(self) -> None:
        while self._waiting and self._file is not None:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        """Ends both files, which may lose what a full disk has kept waiting."""
        with suppress(OSError):
            self._write()
        for opened in (self._file, self._board):
            with suppress(OSError):
                if opened is not None:
                    opened.close()


def write_inputs(folder: Path, schema: Schema, plan: str) -> None:
    """Writes schema.json and plan.json; rank 0 calls it. Raises UnwritableError."""
    write_json(folder / SCHEMA_FILE, schema_to_dict(schema))
    write_text(folder / PLAN_FILE, plan)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON; see `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def claim(
    file: Path,
    said: Mapping[str, Any],
    *,
    refusal: str,
    begun: bool = True,
    lock: AbstractContextManager[Any] | None = None,
) -> None:
    """Writes as YAML what a folder of runs is for, or checks that the file says the same, so that none holds two.

    Args:
        file: in the folder, which is made.
        said: what it is for.
        refusal: the error for a folder that is for something else.
        begun: whether there is anything in the folder that would be mixed.
        lock: held meanwhile, where several processes call it at once.

    Raises UserError with the refusal, or where the folder cannot be written.
    """
    text = yaml.safe_dump(dict(said), sort_keys=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with lock or nullcontext():
            if file.exists() and file.read_text() != text and begun:
                raise UserError(refusal)
            write_text(file, text)
    except (OSError, UnwritableError) as error:
        raise UserError(f"{file.parent} cannot be written ({reason_of(error)}); give another --out.") from error


def write_text(path: Path, text: str) -> None:
    """Writes text; a reader finds the old file or the new one, whole. Raises UnwritableError."""
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(text)
        new.rename(path)
    except OSError as error:
        raise UnwritableError(f"{path} cannot be written ({reason_of(error)})") from error
