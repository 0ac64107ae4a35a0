"""The validation metric that a run is judged by: `auc`, the mean over its tasks, or one task's, as `auc/like`."""

from collections.abc import Sequence
from dataclasses import dataclass

from stem_torchrec.data.columns import Columns
from stem_torchrec.data.label_kinds import has_mixed_group, label_kinds
from stem_torchrec.data.listing import RowGroup
from stem_torchrec.data.schema import LabelKind
from stem_torchrec.metrics.multi_task import TaskMetrics
from stem_torchrec.runtime.errors import UserError, nearest

Metrics = dict[str, TaskMetrics]
"""An evaluation: the metrics of each task by its name."""

SIGNS = {"auc": 1, "gauc": 1, "logloss": -1, "ne": -1, "rmse": -1, "mae": -1}
"""The metrics that can be watched, with -1 where lower is better."""
_OF_VALUES = ("auc", "gauc", "rmse", "mae")
"""Those of tasks whose labels are numbers or levels; binary tasks have the others, and auc and gauc."""
_NO_LABEL = "no label"


@dataclass(frozen=True)
class WatchedMetric:
    """Scores evaluations by one metric.

    Args:
        name: auc, gauc, logloss, ne, rmse or mae for the mean over the tasks, or `metric/task`.
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

    @classmethod
    def of_split(cls, name: str, columns: Columns, row_groups: Sequence[RowGroup]) -> "WatchedMetric":
        """The metric of a run that is judged by a split; reads labels only where the footers do not tell.

        Raises UserError also for a task whose labels leave the metric undefined, so that no training ends without one.
        """
        watched = cls(name, columns.labels, has_groups=columns.group is not None)
        problems = {
            task: problem for task in watched.judged_tasks if (problem := watched.problem_of(task, columns, row_groups))
        }
        for task, problem in problems.items():
            fine = [each for each in columns.labels if each not in problems]
            fixes = [f"leave it out, as in --data.labels {' '.join(fine)}"] if fine else []
            other = "logloss" if columns.is_binary(task) else "rmse"
            fixes += [f"choose another --train.metric, such as {other}"] if problem != _NO_LABEL else []
            raise UserError(
                f"--train.metric is {name!r}, but the validation split has {problem} for task {task!r}, which leaves "
                f"it undefined; {', or '.join([*fixes, 'give a log that has more'])}."
            )
        return watched

    @property
    def judged_tasks(self) -> Sequence[str]:
        """The tasks that the score is the mean of."""
        task = self.name.partition("/")[2]
        return [task] if task else self.tasks

    def problem_of(self, task: str, columns: Columns, row_groups: Sequence[RowGroup]) -> str | None:
        """What leaves the metric of a task undefined, or None; raises UserError for labels that are no labels."""
        metric, labels = self.name.partition("/")[0], label_kinds(row_groups, columns, task)
        if (kind := columns.kind_of(task)) != "binary":
            problem = _problem_of_values(metric, kind, labels)
            return problem or self._problem_of_groups(task, columns, row_groups)
        kinds, wrong = labels & {0, 1}, labels - {0, 1}
        if wrong and len(kinds) < 2:
            raise UserError(
                f"the validation split has {wrong.pop():g} as a label of task {task!r}, but labels must be 0, 1 or "
                "null; write them so, or leave the task out with --data.labels."
            )
        if not kinds:
            return _NO_LABEL
        if metric in ("rmse", "mae"):
            return "labels of 0 and 1"
        if metric != "logloss" and len(kinds) == 1:
            return f"only labels that are {kinds.pop():g}"
        return self._problem_of_groups(task, columns, row_groups)

    def _problem_of_groups(self, task: str, columns: Columns, row_groups: Sequence[RowGroup]) -> str | None:
        if not self.name.startswith("gauc") or columns.group is None or has_mixed_group(row_groups, columns, task):
            return None
        return f"no {columns.group} with {'labels of both kinds' if task not in columns.not_binary else 'two labels'}"

    def by_task(self) -> dict[str, "WatchedMetric"]:
        """The same metric of each task alone; raises UserError where it is one task's already."""
        metric, _, task = self.name.partition("/")
        if task:
            raise UserError(
                f"--train.metric is {self.name!r}, which judges by one task, but --train.best-by-task judges each by "
                f"its own; give --train.metric {metric}, or leave out --train.best-by-task."
            )
        return {task: WatchedMetric(f"{metric}/{task}", self.tasks, self.has_groups) for task in self.tasks}

    def score(self, metrics: Metrics) -> float:
        """The metric, higher is better: its mean over the tasks, negative where lower is better; NaN if undefined."""
        metric = self.name.partition("/")[0]
        values = [getattr(metrics[task], metric) for task in self.judged_tasks]
        return SIGNS[metric] * sum(values) / len(values)


def _problem_of_values(metric: str, kind: LabelKind, labels: set[float]) -> str | None:
    """What leaves a metric of a task that is not binary undefined, or None; `labels` are two different ones if any."""
    if not labels:
        return _NO_LABEL
    if metric not in _OF_VALUES:
        return f"labels of kind {kind}"
    return f"only labels that are {next(iter(labels)):g}" if metric in ("auc", "gauc") and len(labels) == 1 else None
