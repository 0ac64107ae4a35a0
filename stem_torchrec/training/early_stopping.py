"""Which evaluation is the best so far, and when to stop waiting for a better one."""

import math
from dataclasses import dataclass

from stem_torchrec.runtime.errors import DivergedError
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
    """Evaluations since the best one."""
    plateaus: int = 0
    """Evaluations without a better one since the run began."""

    def better(self, metrics: Metrics) -> bool:
        """Whether `metrics` are the best so far; where the metric is undefined, whether none before was defined.

        So the weights of a training are kept whatever its validation split lacks. Raises DivergedError for predictions
        that are not numbers.
        """
        if any(task.has_diverged for task in metrics.values()):
            raise DivergedError("the model's predictions are not numbers any more; lower the learning rates.")
        score = self.metric.score(metrics)
        if math.isnan(score):
            return self.best is None
        if self.best is None or score > self.best:
            self.best, self.waited = score, 0
            return True
        self.waited += 1
        self.plateaus += 1
        return False

    @property
    def stop(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.waited >= self.patience
