"""One comparison on several logs: each log with trainings and a report of its own, and a report on the rows of all.

The logs are one source split in several ways, as by other seeds or by rolling days. A model is trained, tuned and
stopped on each log by itself, so that no log tells another what to choose; the test rows of all decide together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np

from stem_torchrec.comparison.options import Request
from stem_torchrec.comparison.resampling import Resampled
from stem_torchrec.comparison.resolved import resolve_log
from stem_torchrec.comparison.scored_rows import Comparison, ScoredRows
from stem_torchrec.comparison.task_scores import resample_together
from stem_torchrec.config import DataConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.errors import UserError


def requests_by_log(request: Request) -> list[Request]:
    """The comparison on each log of `--logs`, in a folder of its own, log_1 and so on; without `--logs` as it is.

    All logs are checked before the first is trained; what depends on a log is filled in later, by `resolve_log`. Raises
    UserError where options do not fit a log, or the logs have other tasks or tasks of other kinds, or only some of them
    a group.
    """
    config = request.config
    if not config.logs:
        return [request]
    requests = []
    for number, log in enumerate(config.logs, 1):
        folder = Path(config.out) / f"log_{number}"
        runs = [replace(run, folder=folder / run.folder.relative_to(config.out), log=number) for run in request.runs]
        grid = request.grid and replace(request.grid, folder=folder / request.grid.folder.relative_to(config.out))
        train = replace(request.train, data=replace(request.train.data, path=log))
        of_log = replace(config, out=str(folder), logs=(), recommend=False)
        requests.append(replace(request, config=of_log, train=train, runs=tuple(runs), grid=grid))
    by_log = [_columns(resolve_log(each).train.data) for each in requests]
    first, log_1 = by_log[0], config.logs[0]
    for log, columns in zip(config.logs, by_log, strict=True):
        if (tasks := _tasks(columns)) != _tasks(first):
            raise UserError(
                f"--logs: {log} has the tasks {tasks}, and {log_1} {_tasks(first)}; name those that all have with "
                "--data.labels."
            )
        if (columns.group is None) != (first.group is None):
            grouped, other = (log, log_1) if columns.group else (log_1, log)
            raise UserError(f"--logs: {grouped} has a group column, and {other} has none; give logs of one kind.")
    return requests


def _columns(data: DataConfig) -> Columns:
    return Columns.select(load_schema(data.path or ""), labels=data.labels)


def _tasks(columns: Columns) -> str:
    """The tasks of a log, with what their labels are where these are not 0 and 1: `like, watch (number)`."""
    kinds = columns.not_binary
    return ", ".join(f"{label} ({kinds[label]})" if label in kinds else label for label in columns.labels)


def together(request: Request, by_log: Sequence[Comparison]) -> Comparison:
    """The comparison of all logs, whose report goes into `--out`; without the models that are left out on any.

    Args:
        request: with `--logs`.
        by_log: what was trained on each.
    """
    left_out: dict[str, str] = {}
    for number, each in enumerate(by_log, 1):
        left_out |= {model: f"log {number} ({each.path}): {reason}" for model, reason in each.left_out.items()}
    runs = [run for each in by_log for run in each.runs if run.model not in left_out]
    return replace(by_log[0], config=request.config, runs=runs, tried=(), left_out=left_out)


class RowsOfLogs:
    """The test rows of several logs; see `Scored`.

    A measure is the mean over the logs, weighted by their pairs of labels (AUC) or rows. Users are told apart by their
    raw ids in the group column, and counted once for all logs; without a group, each row of each log is its own.

    Args:
        comparison: of all logs.
        by_log: of each.
    """

    def __init__(self, comparison: Comparison, by_log: Sequence[Comparison]) -> None:
        self.comparison = comparison
        kept = set(comparison.models)
        self.by_log = [ScoredRows(replace(each, runs=[r for r in each.runs if r.model in kept])) for each in by_log]
        first, *others = self.by_log
        self.tasks, self.unit, self.columns = first.tasks, first.unit, first.columns
        assert all(each.unit == self.unit for each in others), "requests_by_log checks it"

    @property
    def rows(self) -> int:
        """Test rows over all logs."""
        return sum(len(each.rows) for each in self.by_log)

    @property
    def measures(self) -> Mapping[str, Sequence[str]]:
        """By task, what the models are compared by."""
        return self.by_log[0].measures

    def draws_for(self, comparisons: int) -> int:
        """Draws of users for a family of so many comparisons."""
        return self.by_log[0].draws_for(comparisons)

    def resample(self, task: str, measure: str = "AUC", *, draws: int) -> Resampled:
        """Measures every model over the rows of all logs that have a label, and over draws of their users."""
        labeled = [each.labeled(task)[0] for each in self.by_log]
        users = [each.users[known] for each, known in zip(self.by_log, labeled, strict=True)]
        if self.unit == "rows":
            starts = np.cumsum([0, *(len(each.rows) for each in self.by_log)])
            users = [numbers + start for numbers, start in zip(users, starts[:-1], strict=True)]
        _, user = np.unique(np.concatenate(users), return_inverse=True)
        of_logs = np.split(user, np.cumsum([len(each) for each in users])[:-1])
        scores = [replace(each.of_task(task), user=numbers) for each, numbers in zip(self.by_log, of_logs, strict=True)]
        return resample_together(scores, measure, draws=draws, confidence=self.comparison.config.confidence)

    def by_number(self, task: str) -> list[dict[str, str]]:
        """A line for each model: on each log, its AUC over the base, mean over the seeds."""
        base, lines = self.comparison.config.base, []
        for model in self.comparison.models:
            if model == base:
                continue
            line = {"model": model}
            for number, each in enumerate(self.by_log, 1):
                own, other = (
                    fmean(run.test_results()["metrics"][task]["auc"] or np.nan for run in each.comparison.runs_of(name))
                    for name in (model, base)
                )
                line[f"log {number}"] = f"{own - other:+.4f}"
            lines.append(line)
        return lines
