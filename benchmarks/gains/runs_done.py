"""The numbers of single runs, for runs.parquet: what each was tested to, how long it trained, and what it keeps."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from stem_torchrec.comparison.diagnostics import count_weights
from stem_torchrec.comparison.runs import Run
from stem_torchrec.training.best_by_task import best_metrics, read_by_task, weights_of_tasks
from stem_torchrec.training.metrics_log import read_metrics_log
from stem_torchrec.training.run_folder import METRICS_LOG, read_metrics

from gains.done import Done


def rows_of_runs(done: Done) -> Iterator[dict[str, Any]]:
    """A row for each run that is done and each of its tasks, with the metrics of its test rows.

    Steps, seconds and weights are those of the training that predicts the task: of all tasks, or of it alone.

    Example::

        # {"source": "shop", "log": "shop", "model": "single_task", "seed": 0, "task": "view", "auc": 0.7661, ...,
        #  "steps": 1758, "best_step": 1172, "seconds": 65.6, "models_kept": 1, "mib_of_weights": 0.63}
    """
    for log, run in done.runs():
        for folder in run.folders():
            yield from _rows(run, folder, {"source": done.name, "log": Path(log).name})


def _rows(run: Run, folder: Path, of_source: dict[str, Any]) -> Iterator[dict[str, Any]]:
    tasks = list(best_metrics(folder))
    by_task, lines = read_by_task(folder), read_metrics_log(folder / METRICS_LOG)
    tables, dense = count_weights([folder])
    kept = len(weights_of_tasks(folder, tasks))
    weights = sum(torch.Size(size).numel() for size in tables) + dense
    readings = [(0, 0.0), *((line["step"], line["train/step_ms"]) for line in lines if "train/step_ms" in line)]
    # Without evaluations and other pauses.
    seconds = sum((step - before) * ms / 1000 for (before, _), (step, ms) in pairwise(readings))
    for task in tasks:
        yield {
            **of_source,
            "model": run.model,
            "seed": run.seed,
            "task": task,
            **run.test_results()["metrics"][task],
            "steps": max((line["step"] for line in lines), default=None),
            "best_step": by_task.steps[task] if by_task else read_metrics(folder).step,
            "seconds": seconds if len(readings) > 1 else None,
            "models_kept": kept,
            "mib_of_weights": 4 * kept * weights / 2**20,
        }
