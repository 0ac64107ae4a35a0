"""Which evaluation is the best so far, and when to stop waiting for a better one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stem_torchrec.metrics.multi_task import TaskMetrics
from stem_torchrec.runtime.errors import DivergedError, UserError, nearest

Metrics = dict[str, TaskMetrics]

SIGNS = {"auc": 1, "gauc": 1, "logloss": -1, "ne": -1}
"""The metrics that can be watched, with -1 where lower is better."""


@dataclass
class EarlyStopping:
    """Keeps the best evaluation and counts those since.

    Args:
        metric: auc, gauc, logloss or ne for the mean over the tasks, or `metric/task`.
        patience: evaluations without a better one after which to stop; never if None.
        tasks: names of the tasks.
        has_groups: whether there is a group column, without which gauc is undefined.

    Raises UserError for an unknown metric or task, and for gauc without groups.
    """

    metric: str
    patience: int | None
    tasks: Sequence[str]
    has_groups: bool = True
    best: float | None = None
    waited: int = 0

    def __post_init__(self) -> None:
        name, _, task = self.metric.partition("/")
        each = [f"{metric}/{known}" for metric in SIGNS for known in self.tasks]
        if name not in SIGNS or (task and task not in self.tasks):
            raise UserError(
                f"--train.metric is {self.metric!r}, but must be {', '.join(SIGNS)} or one task's, as in "
                f"auc/{self.tasks[0]}{nearest(self.metric, [*SIGNS, *each])}"
            )
        if name == "gauc" and not self.has_groups:
            raise UserError(f"--train.metric is {self.metric!r}, but schema.json names no group column; choose auc.")

    def score(self, metrics: Metrics) -> float:
        """The watched metric, higher is better: its mean over the tasks, negative where lower is better."""
        name, _, task = self.metric.partition("/")
        values = [getattr(metrics[t], name) for t in ([task] if task else self.tasks)]
        return SIGNS[name] * sum(values) / len(values)

    def better(self, metrics: Metrics) -> bool:
        """Whether `metrics` are the best so far; raises UserError where they leave the watched metric undefined."""
        value = self.score(metrics)
        if math.isnan(value):
            if any(task.rows and math.isnan(task.logloss) for task in metrics.values()):
                raise DivergedError("the model's predictions are not numbers any more; lower the learning rates.")
            raise UserError(
                f"--train.metric is {self.metric!r}, but the validation split leaves it undefined: a task lacks labels "
                "of both kinds."
            )
        if self.best is None or value > self.best:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    @property
    def stop(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.waited >= self.patience
