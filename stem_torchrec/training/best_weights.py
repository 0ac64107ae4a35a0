"""The best weights of a run in its folder, and the metrics of the evaluation that they come from."""

import math

from torch import nn

from stem_torchrec.checkpoints.folder import Progress
from stem_torchrec.checkpoints.saver import Failures
from stem_torchrec.checkpoints.weights import save_weights
from stem_torchrec.metrics.multi_task import from_json, to_json
from stem_torchrec.runtime.errors import UnwritableError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.paths import move
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.training.best_by_task import BestByTask
from stem_torchrec.training.early_stopping import EarlyStopping
from stem_torchrec.training.run_folder import BEST_WEIGHTS, METRICS_FILE, StoredMetrics, read_metrics, write_metrics
from stem_torchrec.training.watched_metric import Metrics


class BestWeights:
    """Writes the weights of the best evaluation; the best is the one whose weights are on disk.

    All ranks make the same calls.

    Args:
        model: sharded.
        folder: the run folder.
        lock: owns the folder.
        stopping: decides which evaluation is the best.
        max_failures: evaluations in a row whose weights may fail to be written.
        by_task: keeps the weights of each task's best evaluation as well, and decides when to stop.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: AnyPath,
        lock: FolderLock,
        stopping: EarlyStopping,
        *,
        max_failures: int,
        by_task: BestByTask | None = None,
    ) -> None:
        self.stopping, self.by_task = stopping, by_task
        self.failures = Failures(max_failures, "give another --output-dir")
        self.metrics: Metrics = {}
        """The evaluation whose weights are on disk; empty before the first."""
        self._model, self._folder, self._lock = model, folder, lock

    @property
    def result(self) -> Metrics:
        """The metrics that the run ends with: those of the best evaluation, or of each task's best one."""
        return self.metrics if self.by_task is None else self.by_task.metrics

    @property
    def stop(self) -> bool:
        """Whether the patience of the run is used up."""
        return (self.stopping if self.by_task is None else self.by_task).stop

    def restore(self, progress: Progress) -> None:
        """Restores what a checkpoint knows of the best evaluation, if its weights are in this folder.

        Raises DamagedError for metrics that are not of this run.
        """
        best, step = progress.best, progress.step
        self.stopping.plateaus = progress.plateaus

        def read() -> StoredMetrics | None:
            is_there = (self._folder / METRICS_FILE).exists()
            return read_metrics(self._folder, self.stopping.metric.tasks) if is_there else None

        if self.by_task is not None:
            self.by_task.restore(progress.by_task, step=step)
        stored = from_first_rank(read)
        if stored is None and best is not None:
            log_rank0("note: the best weights so far are in another run folder; the next evaluation counts as the best")
        # Without a score, the metrics may be of a step that the run makes again.
        if stored is None or (best is None and stored.step > step):
            return
        self.stopping.best, self.stopping.waited = best, progress.waited
        self.metrics = from_json(stored.valid)

    def keep_unscored(self, step: int) -> None:
        """Writes the weights before an evaluation; if that fails, the evaluation may still keep them."""
        try:
            self._save()
        except UnwritableError as error:
            log_rank0(f"step {step}  {error}")

    def keep(self, step: int, metrics: Metrics) -> None:
        """Writes the weights and their metrics; if that fails, the earlier ones stay the best.

        Raises UnwritableError where it fails more than `max_failures` times in a row.
        """
        failure, new = None, self._folder / f"{METRICS_FILE}.best"
        try:
            from_first_rank(lambda: write_metrics(new, StoredMetrics(step, to_json(metrics))))
            self._save()
            # A rename needs no room on the disk, so metrics and weights are always of the same step.
            from_first_rank(lambda: move(str(new), str(self._folder / METRICS_FILE)))
        except UnwritableError as error:
            failure = str(error)
            log_rank0(f"step {step}  {failure}")
        self.failures.add(failure)
        if failure is None:
            self.metrics = metrics
        else:
            score = self.stopping.metric.score(self.metrics) if self.metrics else math.nan
            self.stopping.best = None if math.isnan(score) else score

    def _save(self) -> None:
        from_first_rank(self._lock.confirm)
        save_weights(self._model, self._folder / BEST_WEIGHTS)
