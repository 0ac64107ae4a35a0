"""A comparison whose runs are done: its test rows, and what every run says of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.comparison.comparable import key_columns, read_keys
from stem_torchrec.comparison.config import CompareConfig
from stem_torchrec.comparison.intervals import (
    MIN_USERS,
    Measure,
    Resampled,
    UsersBehind,
    auc_of,
    gauc_of,
    logloss_of,
    resample,
)
from stem_torchrec.comparison.runs import Run
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.files import Columns, find_row_groups
from stem_torchrec.data.schema import load_schema


@dataclass(frozen=True)
class Comparison:
    """Runs that are trained and tested, and what to make of them."""

    config: CompareConfig
    train: TrainConfig
    """What all have in common, with the folder of the log."""
    runs: Sequence[Run]
    pair: tuple[str, str] | None
    """The two tasks of the comparable samples."""
    chosen: Sequence[Mapping[str, Any]] = ()
    """A line for each model and value that was tried for it; see `choices.Grid.rows`."""
    diverged: Mapping[str, str] = field(default_factory=dict)
    """Why a model is left out."""

    @property
    def folder(self) -> Path:
        """For the report."""
        return Path(self.config.out)

    @property
    def path(self) -> str:
        """Folder of the log."""
        assert self.train.data.path is not None
        return self.train.data.path

    @property
    def skips_bad_rows(self) -> bool:
        """Whether rows that break the schema are left out, as --data.on-bad-row says."""
        return self.train.data.skipped_share is not None

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
        grouped = {"gAUC": gauc_of} if self.columns.group else {}
        return {"AUC": auc_of, **grouped, "logloss": logloss_of}

    def labelled(
        self, task: str, rows: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
        """Which rows, or of `rows`, have a label (N,); and of those whether it is 1, and their users from 0."""
        known = ~np.isnan(self.labels[task]) if rows is None else rows & ~np.isnan(self.labels[task])
        return known, self.labels[task][known] == 1, np.unique(self.users[known], return_inverse=True)[1]

    def resample(self, task: str, measure: str = "AUC", rows: NDArray[np.bool_] | None = None) -> Resampled:
        """A measure of every model, over the rows that have a label, or those of them in `rows`.

        Without draws, and so intervals, where too few users stand behind it; see `MIN_USERS`.
        """
        known, positive, user = self.labelled(task, rows)
        behind = UsersBehind.count(positive, user)
        fewest = behind.both if measure == "gAUC" else min(behind.positives, behind.negatives)
        return resample(
            {
                model: [self.measures[measure](scores[known], positive, user) for scores in by_seed]
                for model, by_seed in self.scores[task].items()
            },
            int(user.max(initial=-1)) + 1,
            resamples=self.comparison.config.resamples if fewest >= MIN_USERS else 0,
            confidence=self.comparison.config.confidence,
            lower_is_better=measure == "logloss",
        )

    def keys(self, name: str) -> NDArray[np.int64]:
        """A sparse feature with one id in each row, in the order of the rows; -1 where null."""
        read, path = key_columns(self.columns, name), self.comparison.path
        row_groups = find_row_groups(path, self.comparison.config.split, load_schema(path), read)
        return read_keys(row_groups, self.columns, name, skip=self.comparison.skips_bad_rows)[self.rows]
