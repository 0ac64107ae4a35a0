"""A comparison whose runs are done: its test rows, and what every run says of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from stem_torchrec.comparison.runs import Run
from stem_torchrec.comparison.statistics import Measure, Resampled, auc_of, gauc_of, resample
from stem_torchrec.data.files import Columns, find_row_groups
from stem_torchrec.data.rows import read_row_group
from stem_torchrec.data.schema import load_schema


@dataclass(frozen=True)
class Comparison:
    """Runs that are trained and tested, and what to make of them; see CompareConfig."""

    folder: Path
    runs: Sequence[Run]
    path: str
    """Folder of the log."""
    split: str
    base: str
    resamples: int
    confidence: float
    pair: tuple[str, str] | None
    edges: Sequence[float]
    item: str
    skips_bad_rows: bool = False
    """Whether rows that break the schema are left out, as --data.on-bad-row says."""
    chosen: Sequence[Mapping[str, Any]] = ()
    """A line for each model and value that was tried for it; see `choices.Grid.rows`."""

    @property
    def models(self) -> list[str]:
        """Each once, in order."""
        return list(dict.fromkeys(run.model for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        """Each once, in order."""
        return list(dict.fromkeys(run.seed for run in self.runs))

    def of(self, model: str) -> list[Run]:
        """The runs of a model, by seed."""
        return [run for run in self.runs if run.model == model]


class Tested:
    """The test rows of a comparison, and what every run says of them."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.columns = Columns.select(load_schema(comparison.path))
        first, *_ = comparison.runs
        predicted = first.predictions()
        self.tasks = [name.partition("/")[2] for name in predicted if name.startswith("label/")]
        self.labels = {task: predicted[f"label/{task}"] for task in self.tasks}
        self.rows = predicted["row"]
        # Without a group column each row is drawn for itself.
        self.drawn = "users" if self.columns.group else "rows"
        self.users: NDArray[np.int64] = predicted.get(self.columns.group or "", self.rows)
        self.scores: dict[str, dict[str, list[NDArray[np.float64]]]] = {task: {} for task in self.tasks}
        for run in comparison.runs:
            predicted = run.predictions()
            for task in self.tasks:
                self.scores[task].setdefault(run.model, []).append(predicted[f"prediction/{task}"])

    @property
    def measures(self) -> Mapping[str, Callable[..., Measure]]:
        """What models are compared by, by its name; gAUC where there is a group column."""
        return {"AUC": auc_of, "gAUC": gauc_of} if self.columns.group else {"AUC": auc_of}

    def resample(self, task: str, measure: str = "AUC", rows: NDArray[np.bool_] | None = None) -> Resampled:
        """A measure of every model, over the rows that have a label, or those of them in `rows`."""
        known = ~np.isnan(self.labels[task]) if rows is None else rows & ~np.isnan(self.labels[task])
        users, user = np.unique(self.users[known], return_inverse=True)
        positive = self.labels[task][known] == 1
        return resample(
            {
                model: [self.measures[measure](scores[known], positive, user) for scores in by_seed]
                for model, by_seed in self.scores[task].items()
            },
            len(users),
            resamples=self.comparison.resamples,
            confidence=self.comparison.confidence,
        )

    def column(self, name: str) -> NDArray[np.int64]:
        """A column of integers, in the order of the rows."""
        columns = Columns(sparse={}, dense=(), labels=(), group=name)
        schema = load_schema(self.comparison.path)
        found = find_row_groups(self.comparison.path, self.comparison.split, schema, columns)
        read = (read_row_group(group, columns, skip=self.comparison.skips_bad_rows).column(name) for group in found)
        return np.concatenate([pc.fill_null(column, 0).to_numpy() for column in read])[self.rows]
