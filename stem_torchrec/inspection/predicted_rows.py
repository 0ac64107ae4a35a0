"""What a run predicts for the rows of a split, and how its gates weigh the groups meanwhile."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stem_torchrec.comparison.intervals import Floats, Ints
from stem_torchrec.comparison.task_scores import TaskScores, labeled
from stem_torchrec.data.batch import Exposures
from stem_torchrec.metrics.multi_task import MultiTaskMetrics, TaskMetrics
from stem_torchrec.metrics.predictions import predictions_of
from stem_torchrec.runtime.process import Process
from stem_torchrec.training.evaluation import weights_of_rows
from stem_torchrec.training.gate_weights import GateWeights, RowHistogram
from stem_torchrec.training.run_evaluation import EvaluateConfig, open_run

Gates = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Mean weight by layer, stream and group."""


@dataclass(frozen=True)
class PredictedRows:
    """N rows of a split, in the order of the log."""

    path: str
    """Folder of the log."""
    rows: int
    grouped: bool
    """Whether the log has a group column."""
    metrics: Mapping[str, TaskMetrics]
    gates: Gates
    even_gates: Gates
    """What `gates` would be if they weighed all experts alike."""
    gate_rows: Mapping[str, RowHistogram]
    """As `GateWeights.histograms` returns them."""
    labels: Mapping[str, Floats]
    """0, 1 or NaN by task, (N,)."""
    weights: Mapping[str, Floats | None]
    """Of the labels by task, (N,)."""
    scores: Mapping[str, Floats]
    """Probabilities by task, (N,)."""
    users: Ints
    """A number for the user of each row, that of the row on a log without a group column, (N,)."""

    def beside(self, other: "PredictedRows", task: str) -> TaskScores:
        """The rows that have a label for a task, with the predictions of this run and of the other one."""
        weights = self.weights[task]
        known, labels, user = labeled(self.labels[task], weights, self.users)
        scores = {"run": [self.scores[task][known]], "other": [other.scores[task][known]]}
        return TaskScores(labels == 1, user, None if weights is None else weights[known], scores)


def predict_rows(config: EvaluateConfig, process: Process, *, rows: int | None, grown: bool) -> PredictedRows:
    """Predicts the first rows of a split by a run's best weights, in one process.

    Memory holds a label, a weight and a prediction for each row and task.

    Args:
        config: the run, the log and the split, with checked paths.
        process: the only rank.
        rows: at most; None for all.
        grown: whether the run's tables may have more rows than the log has ids.

    Raises UserError where the run, its weights or the log are missing or do not fit each other.
    """
    opened = open_run(config, process, grown=grown)
    columns, reader = opened.columns, opened.reader
    total = min(rows or reader.rows, reader.rows)
    reader.start_epoch(0, [[[(0, total)]]])
    metrics = MultiTaskMetrics(columns.labels, process.device, weighted=columns.weighs_rows, levels=columns.task_levels)
    gates, parts = GateWeights(process.device), defaultdict[str, list[Tensor]](list)

    def consume(item: Exposures, logits: Tensor, labels: Tensor) -> None:
        weights = weights_of_rows(item)
        metrics.update(logits, labels, item.groups, weights)
        parts["scores"].append(predictions_of(logits, columns))
        parts["labels"].append(labels.cpu().double())
        users = item.rows if item.groups is None else item.groups
        # Of uint64 the bits, as a comparison takes them.
        parts["users"].append(users.view(torch.int64))
        if weights is not None:
            parts["weights"].append(weights.cpu().double())

    opened.predict(process, consume, watch=gates.watch, shows_plan=False)
    joined = {name: torch.cat(tensors).numpy() for name, tensors in parts.items()}
    tasks = columns.labels
    return PredictedRows(
        path=opened.path,
        rows=total,
        grouped=columns.group is not None,
        metrics=metrics.compute(),
        gates=gates.mean(),
        even_gates=gates.even(),
        gate_rows=gates.histograms(),
        labels=_by_task(joined["labels"], tasks),
        weights=_by_task(joined["weights"], tasks) if "weights" in joined else dict.fromkeys(tasks),
        scores=_by_task(joined["scores"], tasks),
        users=joined["users"],
    )


def _by_task(values: Floats, tasks: tuple[str, ...]) -> dict[str, Floats]:
    return {task: np.ascontiguousarray(values[:, i]) for i, task in enumerate(tasks)}
