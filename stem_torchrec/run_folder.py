"""The run folder: config.yaml, plan.json, metrics.jsonl, metrics.json, TensorBoard files, profile and best weights."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.utils.tensorboard import SummaryWriter

from stem_torchrec.config import TrainConfig
from stem_torchrec.config_file import dump_config
from stem_torchrec.errors import UserError
from stem_torchrec.process import from_first_rank

CONFIG_FILE = "config.yaml"
PLAN_FILE = "plan.json"
METRICS_FILE = "metrics.json"
METRICS_LOG = "metrics.jsonl"
BEST_WEIGHTS = "best"


def create_run_folder(config: TrainConfig) -> Path:
    """Makes the run folder and writes config.yaml; all ranks call it and get the same folder.

    Raises UserError, on all ranks, where the folder holds a run already or cannot be made.
    """

    def make() -> Path:
        folder = Path(config.output_dir or f"runs/{datetime.now():%Y%m%d-%H%M%S}")
        if (folder / METRICS_FILE).exists() or (folder / BEST_WEIGHTS).exists():
            raise UserError(f"{folder} holds a run already; give another --output-dir.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG_FILE).write_text(dump_config(config))
        except OSError as error:
            raise UserError(f"the run folder {folder} cannot be written ({error.strerror}); give another.") from error
        return folder

    return from_first_rank(make)


class MetricsLog:
    """Numbers by step, on rank 0: a line of metrics.jsonl and points in TensorBoard for each call."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / METRICS_LOG).open("w") if dist.get_rank() == 0 else None
        self._board = SummaryWriter(str(folder / "tensorboard")) if dist.get_rank() == 0 else None

    def write(self, step: int, values: dict[str, float | int | None]) -> None:
        """Writes `{"step": step, **values}`; names like `valid/like/auc` become TensorBoard charts."""
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Ends both files."""
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON under another name first, so that a reader finds the old file or the new one, whole."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(value, indent=2) + "\n")
    new.rename(path)
