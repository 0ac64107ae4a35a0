"""The numbers of a run by step: metrics.jsonl and TensorBoard's files."""

import json
import math
from contextlib import suppress
from io import FileIO

from torch.utils.tensorboard import SummaryWriter

from stem_torchrec.runtime.errors import reason_of
from stem_torchrec.runtime.paths import remove_tree, write_text
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.staging import Staging
from stem_torchrec.runtime.store_path import AnyPath

METRICS_LOG = "metrics.jsonl"


class MetricsLog:
    """Rank 0 writes a line of metrics.jsonl and points in TensorBoard for each call; the other ranks write nothing.

    The files of a run folder in a store are copied to it where the run pauses and at its end.

    A full disk does not end the run: lines wait in memory until there is room, and TensorBoard's files end.

    Args:
        folder: the run folder.
        after: the step after which the run resumes; lines and points of later steps are deleted.
        evaluate: whether the evaluation after that step is still due.

    All ranks construct it. Raises UnwritableError on all ranks where the files cannot be opened.

    Example::

        log.write(120, {"train/loss/like": 0.2314})  # {"step": 120, "train/loss/like": 0.2314}
    """

    def __init__(self, folder: AnyPath, *, after: int = 0, evaluate: bool = False) -> None:
        self._file: FileIO | None = None
        self._board: SummaryWriter | None = None
        self._staging: Staging | None = None
        self._waiting = b""

        def is_kept(line: str) -> bool:
            # The last line may be cut off.
            values = json.loads(line) if line.endswith("}") else {"step": math.inf}
            evaluation = any(name.startswith("valid/") for name in values)
            return values["step"] < after + (not (evaluate and evaluation))

        def open_files() -> None:
            path = folder / METRICS_LOG
            lines = path.read_text().splitlines() if path.exists() and after else []
            self._staging = Staging(folder)
            local = self._staging.local
            write_text(local / METRICS_LOG, "".join(f"{line}\n" for line in lines if is_kept(line)))
            self._file = (local / METRICS_LOG).open("ab", buffering=0)
            if not after:
                remove_tree(folder / "tensorboard")
            self._board = SummaryWriter(str(local / "tensorboard"), purge_step=after + 1 if after else None)

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
            log_rank0(f"step {step}  TensorBoard's files cannot be written ({reason_of(error)}); they end at this step")
            self._board = None

    def sync(self) -> None:
        """Copies the files to a run folder in a store, so that it has the lines before a checkpoint is written."""
        if self._staging is None:
            return
        try:
            if self._board is not None:
                self._board.flush()
            self._staging.copy()
        except OSError as error:
            log_rank0(f"{METRICS_LOG} cannot be copied ({reason_of(error)}); its lines wait for the next time")

    def _write(self) -> None:
        while self._waiting and self._file is not None:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        """Closes both files; lines that still wait for room on the disk are lost."""
        with suppress(OSError):
            self._write()
        for opened in (self._file, self._board, self._staging):
            with suppress(OSError):
                if opened is not None:
                    opened.close()
