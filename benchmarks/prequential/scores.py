"""The AUC of each tested day and their mean over the days, with paired intervals over the users of all days.

A draw of users is applied to every day, policy and seed, as most users come on several days.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stem_torchrec.comparison.intervals import MIN_USERS, Measure, UserCounts, auc_of
from stem_torchrec.comparison.resampling import Resampled, resample
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import load_schema

from prequential.day_logs import DayLogs
from prequential.options import DaysOptions
from prequential.policies import POLICIES, Walker

CONFIDENCE = 0.95


@dataclass(frozen=True)
class DayRows:
    """The rows of a tested day that have a label of a task."""

    positive: NDArray[np.bool_]
    """Whether the label is 1, (N,)."""
    users: NDArray
    """Who saw each row, as the log names them, (N,)."""
    scores: Mapping[str, Sequence[NDArray[np.float64]]]
    """By policy the predictions of each seed, (N,)."""


@dataclass(frozen=True)
class TaskScores:
    """The AUC of a task by day and over all days."""

    rows: Mapping[int, int]
    """By day, those with a label."""
    positives: Mapping[int, int]
    days: Mapping[int, Resampled]
    """By day, the AUC of each policy."""
    seeds: Mapping[int, Mapping[str, Sequence[float]]]
    """By day, the AUC of each policy's seeds."""
    mean: Resampled
    """The mean of the days' AUC, in which every day counts the same."""


def score_days(days: Mapping[int, DayRows], draws: int) -> TaskScores:
    """Scores the policies of a task on every day.

    Args:
        days: by day, all with the same policies and seeds.
        draws: of users, behind the intervals. A day with too few users behind its labels, see MIN_USERS, has none.
    """
    numbers = np.unique(np.concatenate([each.users for each in days.values()]), return_inverse=True)[1]
    users = dict(zip(days, np.split(numbers, np.cumsum([len(each.users) for each in days.values()])[:-1]), strict=True))
    measures: dict[str, Sequence[Measure]] = {
        f"{policy}/{day}": [auc_of(scores, each.positive, users[day]) for scores in by_seed]
        for day, each in days.items()
        for policy, by_seed in each.scores.items()
    }
    everyone = np.ones(int(numbers.max()) + 1, dtype=np.int64)
    resampled = resample(measures, len(everyone), resamples=draws, confidence=CONFIDENCE)
    policies = list(next(iter(days.values())).scores)

    def of_day(day: int) -> Resampled:
        known = _enough(days[day].positive, users[day])
        return Resampled(
            {policy: resampled.whole[f"{policy}/{day}"] for policy in policies},
            {policy: resampled.drawn[f"{policy}/{day}"][: None if known else 0] for policy in policies},
            CONFIDENCE,
        )

    known = _enough(np.concatenate([each.positive for each in days.values()]), numbers)
    mean = Resampled(
        {policy: float(np.mean([resampled.whole[f"{policy}/{day}"] for day in days])) for policy in policies},
        {
            policy: np.mean([resampled.drawn[f"{policy}/{day}"] for day in days], axis=0)[: None if known else 0]
            for policy in policies
        },
        CONFIDENCE,
    )
    return TaskScores(
        rows={day: len(each.positive) for day, each in days.items()},
        positives={day: int(each.positive.sum()) for day, each in days.items()},
        days={day: of_day(day) for day in days},
        seeds={
            day: {policy: [each(everyone) for each in measures[f"{policy}/{day}"]] for policy in policies}
            for day in days
        },
        mean=mean,
    )


def _enough(positive: NDArray[np.bool_], user: NDArray[np.int64]) -> bool:
    counts = UserCounts.count(positive, user)
    return min(counts.positives, counts.negatives) >= MIN_USERS


def read_tested(options: DaysOptions, logs: DayLogs) -> dict[str, dict[int, DayRows]]:
    """By task and day, the rows that were tested and their predictions."""
    tested: dict[str, dict[int, DayRows]] = {}
    for day in options.days[1:]:
        tables: dict[str, list[pa.Table]] = {
            policy: [_predictions(Walker(logs.folder, policy, seed), day) for seed in options.seeds]
            for policy in options.policies
        }
        first, *_ = tables[options.policies[0]]
        log = logs.to_test(day, POLICIES[options.policies[0]].log_of(logs.before(day), options.switch))
        group = Columns.select(load_schema(str(log))).group
        # Without groups, rows are drawn instead; no row comes on two days.
        users = first[group].to_numpy() if group else first["row"].to_numpy() + day * 2.0**40
        for task in [name.partition("/")[2] for name in first.column_names if name.startswith("label/")]:
            labels = first[f"label/{task}"].to_numpy()
            for table in (table for by_seed in tables.values() for table in by_seed):
                other = table[f"label/{task}"].to_numpy()
                assert np.array_equal(labels, other, equal_nan=True), "policies were tested on different rows"
            known = ~np.isnan(labels)
            scores = {
                name: [table[f"prediction/{task}"].to_numpy()[known] for table in by_seed]
                for name, by_seed in tables.items()
            }
            tested.setdefault(task, {})[day] = DayRows(labels[known] == 1, users[known], scores)
    return tested


def _predictions(walker: Walker, day: int) -> pa.Table:
    return pq.read_table(walker.predictions(day)).sort_by("row")
