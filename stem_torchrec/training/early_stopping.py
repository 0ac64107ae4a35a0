"""Which evaluation is the best so far, and when to stop waiting for a better one."""

from dataclasses import dataclass

from stem_torchrec.training.watched_metric import Metrics, WatchedMetric


@dataclass
class EarlyStopping:
    """Keeps the best score and counts the evaluations since.

    Args:
        metric: scores the evaluations.
        patience: evaluations without a better one after which to stop; never if None.
    """

    metric: WatchedMetric
    patience: int | None = None
    best: float | None = None
    waited: int = 0

    def better(self, metrics: Metrics) -> bool:
        """Whether `metrics` are the best so far; see `WatchedMetric.defined_score` for what it raises."""
        score = self.metric.defined_score(metrics)
        if self.best is None or score > self.best:
            self.best, self.waited = score, 0
            return True
        self.waited += 1
        return False

    @property
    def stop(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.waited >= self.patience
