"""The validation metric that a run is judged by: `auc`, the mean over its tasks, or one task's, as `auc/like`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stem_torchrec.metrics.multi_task import TaskMetrics
from stem_torchrec.runtime.errors import DivergedError, UserError, nearest

Metrics = dict[str, TaskMetrics]
"""An evaluation: the metrics of each task by its name."""

SIGNS = {"auc": 1, "gauc": 1, "logloss": -1, "ne": -1}
"""The metrics that can be watched, with -1 where lower is better."""


@dataclass(frozen=True)
class WatchedMetric:
    """Scores evaluations by one metric.

    Args:
        name: auc, gauc, logloss or ne for the mean over the tasks, or `metric/task`.
        tasks: names of the tasks.
        has_groups: whether there is a group column, without which gauc is undefined.

    Raises UserError for an unknown metric or task, and for gauc without groups.

    Example::

        WatchedMetric("logloss/like", ["finish", "like"]).score(metrics)  # -0.2134
    """

    name: str
    tasks: Sequence[str]
    has_groups: bool = True

    def __post_init__(self) -> None:
        metric, _, task = self.name.partition("/")
        each = [f"{known}/{of}" for known in SIGNS for of in self.tasks]
        if metric not in SIGNS or (task and task not in self.tasks):
            raise UserError(
                f"--train.metric is {self.name!r}, but must be {', '.join(SIGNS)} or one task's, as in "
                f"auc/{self.tasks[0]}{nearest(self.name, [*SIGNS, *each])}"
            )
        if metric == "gauc" and not self.has_groups:
            raise UserError(f"--train.metric is {self.name!r}, but schema.json names no group column; choose auc.")

    def score(self, metrics: Metrics) -> float:
        """The metric, higher is better: its mean over the tasks, negative where lower is better; NaN if undefined."""
        metric, _, task = self.name.partition("/")
        values = [getattr(metrics[t], metric) for t in ([task] if task else self.tasks)]
        return SIGNS[metric] * sum(values) / len(values)

    def defined_score(self, metrics: Metrics) -> float:
        """The score; raises DivergedError for predictions that are not numbers, UserError where it is undefined."""
        value = self.score(metrics)
        if math.isnan(value):
            if any(task.rows and math.isnan(task.logloss) for task in metrics.values()):
                raise DivergedError("the model's predictions are not numbers any more; lower the learning rates.")
            raise UserError(
                f"--train.metric is {self.name!r}, but the validation split leaves it undefined: a task lacks labels "
                "of both kinds."
            )
        return value
