"""The AUC of a model over draws of users and seeds, computed once and kept in a file beside the runs.

The draws follow from the rows and the number of seeds alone, so those of a model pair with those of every other model
of the same rows and seeds, as if they had been computed together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stem_torchrec.comparison.resampling import Resampled
from stem_torchrec.comparison.scored_rows import ScoredRows

from common.output import write_table
from gains.done import Done
from gains.of_two import add_pairs, of_pairs


@dataclass(frozen=True)
class Draws:
    """The AUC of a model in a task."""

    whole: float
    """Over all rows, mean over the seeds."""
    drawn: NDArray[np.float64]
    """Of each draw; empty where too few users have labels of a kind."""
    unit: str
    """What is drawn: users or rows."""
    complete: bool
    """Whether every row has a label."""


def draws_of(done: Done, model: str, seeds: Sequence[int], number: int) -> dict[str, Draws]:
    """The AUC of a model over `number` draws, by task; from the file if it has as many of the same runs.

    Args:
        done: the source.
        model: done with these seeds, or `done.of_two` if the base is.
        seeds: those of the comparison.
        number: of draws.
    """
    file = Path(done.folder) / "draws" / model / f"seeds_{'_'.join(map(str, seeds))}.parquet"
    trained = done.base if model == done.of_two else model
    measured = {task: done.aucs(trained, seeds, task) for task in done.tasks}
    rows = pq.read_table(file).to_pylist() if file.exists() else []
    if {row["task"]: row["measured"] for row in rows} != measured or min(row["draws"] for row in rows) < number:
        drawn = _drawn(done, model, seeds, number)
        rows = [{"task": task, **row, "draws": number, "measured": measured[task]} for task, row in drawn.items()]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_table(file, pa.Table.from_pylist(rows))
    # The first of more draws are the same draws.
    return {
        row["task"]: Draws(row["whole"], np.array(row["drawn"][:number]), row["unit"], row["complete"]) for row in rows
    }


def _drawn(done: Done, model: str, seeds: Sequence[int], number: int) -> dict[str, dict[str, object]]:
    is_of_two = model == done.of_two
    scored = done.scored(done.base if is_of_two else model, seeds)
    logs = [scored] if isinstance(scored, ScoredRows) else scored.by_log
    for log in logs if is_of_two else ():
        add_pairs(log, done.base)
    rows: dict[str, dict[str, object]] = {}
    for task in scored.tasks:
        resampled = scored.resample(task, draws=number)
        whole, drawn = of_pairs(resampled, done.base) if is_of_two else (resampled.whole[model], resampled.drawn[model])
        complete = all(log.labeled(task)[0].all() for log in logs)
        row = {"whole": whole, "drawn": drawn.tolist()}
        rows[task] = {**row, "unit": scored.unit, "complete": bool(complete)}
    return rows


def mean_over_tasks(by_task: Mapping[str, Draws]) -> Draws:
    """The mean of the tasks in each draw; empty if a task has no draws.

    Args:
        by_task: whose rows have all labels, so that a draw takes the same users in each task.
    """
    assert all(each.complete for each in by_task.values())
    first, *_ = by_task.values()
    shortest = min(len(each.drawn) for each in by_task.values())
    drawn = np.mean([each.drawn[:shortest] for each in by_task.values()], axis=0)
    return Draws(float(np.mean([each.whole for each in by_task.values()])), drawn, first.unit, complete=True)


def paired(models: Mapping[str, Draws], confidence: float) -> Resampled:
    """The draws of models of the same rows and seeds, to take differences of."""
    return Resampled(
        {model: each.whole for model, each in models.items()},
        {model: each.drawn for model, each in models.items()},
        confidence,
    )
