"""The numbers of a run by step: metrics.jsonl, TensorBoard's files, and trackers."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from stem_torchrec.config.json_text import parse_json
from stem_torchrec.runtime.errors import DamagedError, Interrupted, reason_of
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.paths import remove_tree, write_text
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.staging import Staging
from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.tracking.chosen import Trackers, open_trackers
from stem_torchrec.tracking.tracker import Outcome
from stem_torchrec.training.gate_weights import BINS, RowHistogram
from stem_torchrec.training.run_folder import METRICS_LOG

_EDGES = [(i + 1) / BINS for i in range(BINS)]
"""The upper ends of the bins of a histogram."""


def read_metrics_log(path: AnyPath) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a kill has cut off is left out.

    Raises DamagedError with the number of a line that is not what a run writes.
    """
    values: list[dict[str, Any]] = []
    with path.open("rb") as file:
        lines = file.read().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            content = parse_json(line)
            if not isinstance(content, dict) or type(content.get("step")) is not int:
                raise ValueError("it has no whole number as its step")
            if name := next((name for name, value in content.items() if not _is_metric(value)), None):
                raise ValueError(f"{name} is {content[name]!r}, which is no number")
        except ValueError as error:
            if not line.endswith(b"\n"):
                break
            raise DamagedError(
                f"{path}, line {number}, is damaged ({reason_of(error)}); repair or delete the line, and the same "
                "command resumes."
            ) from error
        values.append(content)
    return values


def _is_metric(value: Any) -> bool:
    return value is None or type(value) in (int, float)


class MetricsLog:
    """Rank 0 writes a line of metrics.jsonl and points in TensorBoard for each call; the other ranks write nothing.

    Trackers (`STEM_TRACKERS`) get the same numbers.

    The files of a run folder in a store are copied to it where the run pauses and at its end.

    A full disk does not end the run: lines wait in memory until there is room, and TensorBoard's files end.

    Args:
        folder: the run folder.
        lock: owns the folder; nothing is written once another process has taken it over.
        after: the step after which the run resumes; lines and points of later steps are deleted.
        evaluate: whether the evaluation after that step is still due.

    All ranks construct it. Raises UnwritableError on all ranks where the files cannot be opened, DamagedError where a
    line of the earlier run is damaged, UserError where a tracker cannot be opened.

    Example::

        log.write(120, {"train/loss/like": 0.2314})  # {"step": 120, "train/loss/like": 0.2314}
    """

    def __init__(self, folder: AnyPath, lock: FolderLock, *, after: int = 0, evaluate: bool = False) -> None:
        self._folder, self._lock = folder, lock
        self._trackers = Trackers({})
        self._file: FileIO | None = None
        self._board: SummaryWriter | None = None
        self._staging: Staging | None = None
        self._waiting = b""

        def is_kept(values: dict[str, Any]) -> bool:
            evaluation = any(name.startswith("valid/") for name in values)
            return values["step"] < after + (not (evaluate and evaluation))

        def open_files() -> None:
            path = folder / METRICS_LOG
            lines = read_metrics_log(path) if path.exists() and after else []
            self._trackers = open_trackers(os.environ, folder)
            self._staging = Staging(folder)
            local = self._staging.local
            text = "".join(f"{json.dumps(line)}\n" for line in lines if is_kept(line))
            write_text(local / METRICS_LOG, text)
            self._file = (local / METRICS_LOG).open("ab", buffering=0)
            if not after:
                remove_tree(folder / "tensorboard")
            self._board = SummaryWriter(str(local / "tensorboard"), purge_step=after + 1 if after else None)

        from_first_rank(open_files)

    def write(
        self, step: int, values: dict[str, float | int | None], histograms: Mapping[str, RowHistogram] | None = None
    ) -> None:
        """Writes `{"step": step, **values}`; names like `valid/like/auc` become TensorBoard charts.

        TensorBoard alone gets the histograms.
        """
        if self._file is None or self._lock.lost:
            return
        lines_wait = bool(self._waiting)
        self._waiting += (json.dumps({"step": step, **values}) + "\n").encode()
        try:
            self._write()
        except OSError as error:
            if not lines_wait:
                log_rank0(f"step {step}  {METRICS_LOG} cannot be written ({reason_of(error)}); its lines wait for room")
        try:
            if self._board is not None:
                _add_points(self._board, step, values, histograms or {})
        except OSError as error:
            log_rank0(f"step {step}  TensorBoard's files cannot be written ({reason_of(error)}); they end at this step")
            self._board = None
        self._trackers.write(step, values)

    def sync(self) -> None:
        """Copies the files to a run folder in a store, so that it has the lines before a checkpoint is written."""
        if self._staging is None or self._lock.lost:
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
        for opened in (self._file, self._board):
            with suppress(OSError):
                if opened is not None:
                    opened.close()
        with suppress(OSError):
            if self._staging is not None:
                self._staging.close(copy=not self._lock.lost)

    def end_trackers(self, outcome: Outcome) -> None:
        """Ends the trackers, unless another process has the run now; a second call does nothing."""
        if not self._lock.lost:
            self._trackers.end(self._folder, outcome)

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Ends the trackers at the end of the block, with the outcome that it has."""
        try:
            yield
        except BaseException as error:
            asked = isinstance(error, Interrupted | KeyboardInterrupt)
            self.end_trackers(Outcome.KILLED if asked else Outcome.FAILED)
            raise
        self.end_trackers(Outcome.FINISHED)


def _add_points(
    board: SummaryWriter, step: int, values: Mapping[str, float | int | None], histograms: Mapping[str, RowHistogram]
) -> None:
    for name, value in values.items():
        if value is not None:
            board.add_scalar(name, value, step)
    for name, each in histograms.items():
        board.add_histogram_raw(
            name, min=0, max=1, num=sum(each.counts), sum=each.total, sum_squares=each.squares, bucket_limits=_EDGES,
            bucket_counts=each.counts, global_step=step,
        )  # fmt: skip
