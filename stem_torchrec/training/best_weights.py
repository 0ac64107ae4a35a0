"""The best weights of a run in its folder, and the metrics of the evaluation that they come from."""

from torch import nn

from stem_torchrec.checkpoints.saver import Failures
from stem_torchrec.checkpoints.weights import save_weights
from stem_torchrec.metrics.multi_task import to_json
from stem_torchrec.runtime.errors import UnwritableError
from stem_torchrec.runtime.paths import move
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.training.early_stopping import EarlyStopping
from stem_torchrec.training.run_folder import BEST_WEIGHTS, METRICS_FILE, best_so_far, write_metrics
from stem_torchrec.training.watched_metric import Metrics


class BestWeights:
    """Writes the weights of the best evaluation; the best is the one whose weights are on disk.

    All ranks make the same calls.

    Args:
        model: sharded.
        folder: the run folder.
        stopping: decides which evaluation is the best.
        max_failures: evaluations in a row whose weights may fail to be written.
    """

    def __init__(self, model: nn.Module, folder: AnyPath, stopping: EarlyStopping, *, max_failures: int) -> None:
        self.stopping = stopping
        self.failures = Failures(max_failures, "give another --output-dir")
        self.metrics: Metrics = {}
        """The evaluation whose weights are on disk; empty before the first."""
        self._model, self._folder = model, folder

    def restore(self, best: float | None, waited: int) -> None:
        """Restores the best score and the number of evaluations since, if the best weights are in this folder."""
        if best is None:
            return
        if not from_first_rank(lambda: (self._folder / METRICS_FILE).exists()):
            log_rank0("note: the best weights so far are in another run folder; the next evaluation counts as the best")
            return
        self.stopping.best, self.stopping.waited = best, waited
        self.metrics = best_so_far(self._folder)

    def keep(self, step: int, metrics: Metrics) -> None:
        """Writes the weights and their metrics; if that fails, the earlier ones stay the best.

        Raises UserError where it fails more than `max_failures` times in a row.
        """
        failure, new = None, self._folder / f"{METRICS_FILE}.best"
        try:
            best = {"step": step, "valid": to_json(metrics)}
            from_first_rank(lambda: write_metrics(new, best))
            save_weights(self._model, self._folder / BEST_WEIGHTS)
            # A rename needs no room on the disk, so metrics and weights are always of the same step.
            from_first_rank(lambda: move(str(new), str(self._folder / METRICS_FILE)))
        except UnwritableError as error:
            failure = str(error)
            log_rank0(f"step {step}  {failure}")
        self.failures.add(failure)
        if failure is None:
            self.metrics = metrics
        else:
            self.stopping.best = self.stopping.metric.score(self.metrics) if self.metrics else None
