"""A comparison whose runs are done, and the rows of its test split with the predictions of every run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stem_torchrec.comparison.comparable import key_columns, key_numbers, read_keys
from stem_torchrec.comparison.compare_config import CompareConfig
from stem_torchrec.comparison.multiplicity import draws_for
from stem_torchrec.comparison.resampling import Resampled
from stem_torchrec.comparison.runs import Run
from stem_torchrec.comparison.task_scores import TaskScores, labeled, measures_of
from stem_torchrec.comparison.variants import Variant, forms_by_task
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.errors import UserError


@dataclass(frozen=True)
class Comparison:
    """Runs that are trained and tested, for the report."""

    config: CompareConfig
    train: TrainConfig
    """What all runs have in common, with the folder of the log."""
    runs: Sequence[Run]
    pair: tuple[str, str] | None
    """The two tasks of the comparable samples."""
    tried: Sequence[Mapping[str, Any]] = ()
    """One row for each model and setting that was tried for it; see `Grid.rows`."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """The models that could not be trained, with the reason."""
    variants: Mapping[str, Variant] = field(default_factory=dict)
    """The models by name."""

    @property
    def folder(self) -> Path:
        """Where the report goes."""
        return Path(self.config.out)

    @property
    def path(self) -> str:
        """The folder of the log."""
        assert self.train.data.path is not None
        return self.train.data.path

    @property
    def skips_bad_rows(self) -> bool:
        """Whether rows that break the schema are skipped (--data.on-bad-row)."""
        return self.train.data.skipped_share is not None

    @property
    def models(self) -> list[str]:
        """The models, in order."""
        return list(dict.fromkeys(run.model for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return list(dict.fromkeys(run.seed for run in self.runs))

    @property
    def forms_by_task(self) -> dict[str, str]:
        """By model that is there with the best weights of each task as well, the name of that form, if not the base."""
        variants = {model: self.variants[model] for model in self.models if model in self.variants}
        forms = forms_by_task(variants, self.train)
        return {model: form for model, form in forms.items() if form != self.config.base}

    def runs_of(self, model: str) -> list[Run]:
        """The runs of a model, in the order of the seeds."""
        return [run for run in self.runs if run.model == model]


def check_base(base: str, left_out: Mapping[str, str]) -> None:
    """Raises UserError where the base is among the models that could not be trained.

    Args:
        base: the model that the others are compared with.
        left_out: as of a Comparison.
    """
    if base in left_out:
        raise UserError(
            f"{left_out[base].rstrip('.')}; the other models cannot be compared with --base {base}: give another "
            "--base, or train it with other options in another --out."
        )


class Scored(Protocol):
    """The test rows of a comparison, of one log or of several, with the predictions of every run."""

    comparison: Comparison
    tasks: Sequence[str]
    unit: str
    """What is drawn: users, or rows without a group column."""

    columns: Columns
    """Of the log, or of the first."""

    @property
    def measures(self) -> Mapping[str, Sequence[str]]:
        """By task, what the models are compared by."""

    def draws_for(self, comparisons: int) -> int:
        """Draws of users for a family of so many comparisons."""

    def resample(self, task: str, measure: str = "AUC", *, draws: int) -> Resampled:
        """Measures every model over the rows that have a label, and over draws of their users."""


class ScoredRows:
    """The rows of a comparison's test split: labels and users, and the predictions of every run.

    N is the number of rows, in the order of the log.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.columns = Columns.select(load_schema(comparison.path), spaces=comparison.train.data.spaces)
        first, *_ = comparison.runs
        predicted = first.predictions()
        self.tasks: Sequence[str] = [name.partition("/")[2] for name in predicted if name.startswith("label/")]
        self.labels = {task: predicted[f"label/{task}"] for task in self.tasks}
        # None for a log without weights of rows.
        self.weights = {task: predicted.get(f"weight/{task}") for task in self.tasks}
        self.rows = predicted["row"]
        # Without a group column rows are drawn instead of users.
        self.unit = "users" if self.columns.group else "rows"
        # As `comparable.read_keys` reads them.
        users = predicted.get(self.columns.group or "", self.rows)
        self.users: NDArray[np.int64] = key_numbers(pa.chunked_array([pa.array(users)]))
        self.scores: dict[str, dict[str, list[NDArray[np.float64]]]] = {task: {} for task in self.tasks}
        for run in comparison.runs:
            predicted = run.predictions()
            for task in self.tasks:
                self.scores[task].setdefault(run.model, []).append(predicted[f"prediction/{task}"])

    @property
    def measures(self) -> Mapping[str, Sequence[str]]:
        """By task, what the models are compared by."""
        grouped = self.columns.group is not None
        return {task: list(measures_of(grouped=grouped, binary=self.columns.is_binary(task))) for task in self.tasks}

    def draws_for(self, comparisons: int) -> int:
        """Draws of users for a family of so many comparisons: --resamples, or as many as they need."""
        config = self.comparison.config
        return config.resamples or draws_for(comparisons, config.confidence)

    def labeled(
        self, task: str, rows: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[Any], NDArray[np.int64]]:
        """Selects the rows that have a label whose weight is not 0, of `rows` (N,) if given.

        Returns which rows have one (N,); and for the M that do, whether the label is 1, or the number or level, (M,)
        and the user, numbered from 0 (M,).
        """
        known, labels, user = labeled(self.labels[task], self.weights[task], self.users, rows)
        return known, labels == 1 if self.columns.is_binary(task) else labels, user

    def resample(
        self, task: str, measure: str = "AUC", rows: NDArray[np.bool_] | None = None, *, draws: int
    ) -> Resampled:
        """Measures every model over the rows that have a label, of `rows` (N,) if given, and over draws of their users.

        Without draws, and so without intervals, if too few users tell labels apart; see `MIN_USERS`.
        """
        of_task = self.of_task(task, rows)
        return of_task.resample(measure, draws=draws, confidence=self.comparison.config.confidence)

    def of_task(self, task: str, rows: NDArray[np.bool_] | None = None) -> TaskScores:
        """The rows that have a label, of `rows` (N,) if given, with the predictions of every model."""
        known, labels, user = self.labeled(task, rows)
        weights = self.weights[task]
        return TaskScores(
            labels,
            user,
            None if weights is None else weights[known].astype(np.float64),
            {model: [scores[known] for scores in by_seed] for model, by_seed in self.scores[task].items()},
            binary=self.columns.is_binary(task),
        )

    def keys(self, name: str) -> NDArray[np.int64]:
        """The ids (N,) of a sparse feature that has one id in each row; -1 where null."""
        columns, path = key_columns(self.columns, name), self.comparison.path
        row_groups = find_row_groups(path, self.comparison.config.split, load_schema(path), columns)
        return read_keys(row_groups, self.columns, name, skip=self.comparison.skips_bad_rows)[self.rows]
