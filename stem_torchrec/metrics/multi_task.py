"""Evaluation metrics per task, exact over the whole evaluation set and all ranks."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from weakref import finalize

import torch
from tabulate import tabulate
from torch import Tensor

from stem_torchrec.metrics.auc import ROWS_AT_ONCE
from stem_torchrec.metrics.collectives import gather
from stem_torchrec.metrics.task_chunk import TaskChunk
from stem_torchrec.metrics.task_metrics import TaskMetrics, compute_task
from stem_torchrec.metrics.value_chunk import ValueChunk
from stem_torchrec.metrics.value_metrics import compute_values
from stem_torchrec.runtime.errors import DataError


class MultiTaskMetrics:
    """Collects this rank's logits and labels, and computes metrics over the rows of all ranks, however many there are.

    B is the batch size and T the number of tasks. A row takes 8 T + 8 bytes of memory. When there are
    `rows_in_memory`, they are moved to disk until `reset`, with 18 bytes a row and task, 32 of a task that is not
    binary. `compute` takes about 150 bytes a row, for about `rows_in_memory` rows of a rank and one task at a time.

    Args:
        tasks: names, in the order of the logits' columns.
        device: where the rows are kept and counted, the CPU if None. The process group's backend must serve
            it: "cuda" for NCCL, "cpu" for gloo.
        weighted: whether labels have weights, the same on all ranks; 4 T more bytes a row.
        levels: of tasks that are not binary, the number of levels of the label, None for numbers.
        rows_in_memory: rows of this rank above which they are moved to disk.

    Example::

        metrics = MultiTaskMetrics(["finish", "like"])
        for batch in batches:
            metrics.update(model(batch), batch.labels, batch.user_ids)
        print(format_table(metrics.compute()))
    """

    def __init__(
        self,
        tasks: Sequence[str],
        device: torch.device | None = None,
        *,
        weighted: bool = False,
        levels: Mapping[str, int | None] | None = None,
        rows_in_memory: int = ROWS_AT_ONCE,
    ) -> None:
        self.tasks = list(tasks)
        self.levels = dict(levels or {})
        self.device = device or torch.device("cpu")
        self.weighted = weighted
        self.rows_in_memory = rows_in_memory
        self._remove: Callable[[], object] = lambda: None
        self.reset()

    def reset(self) -> None:
        """Removes all rows."""
        self._remove()
        self._stored: list[list[TaskChunk | ValueChunk]] = []
        self._folder: Path | None = None
        self._without_groups = 0
        self._begin()

    def _begin(self) -> None:
        # float32 and int64 on every rank, also on one without rows, because the ranks exchange them.
        self._logits = [torch.empty(0, len(self.tasks), device=self.device)]
        self._labels = [torch.empty(0, len(self.tasks), device=self.device)]
        self._groups = [torch.empty(0, dtype=torch.int64, device=self.device)]
        self._weights = [torch.empty(0, len(self.tasks), device=self.device)]

    def update(
        self, logits: Tensor, labels: Tensor, groups: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        """Adds a batch of this rank's rows.

        Args:
            logits: before the sigmoid, or of tasks with `levels` the predictions, shape (B, T).
            labels: 0, 1, or another number or level, or NaN where the label is missing, shape (B, T).
            groups: integers, the user of each row, shape (B,). gAUC is NaN if any batch has none.
            weights: of the labels, from 0 on, shape (B, T); needed if `weighted` is true.

        Raises:
            ValueError: the shapes do not fit.
            DataError: the disk is full.

        Example::

            metrics.update(
                torch.tensor([[0.3, -2.0], [1.1, 0.4]]),  # logits of the tasks finish and like
                torch.tensor([[1.0, 0.0], [0.0, math.nan]]),  # the second row has no label for like
                torch.tensor([17, 42]),  # user ids
            )
        """
        expected = (len(logits), len(self.tasks))
        if logits.shape != expected or labels.shape != expected:
            raise ValueError(
                f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} must both have shape "
                f"(batch size, {len(self.tasks)}), one column for each of {self.tasks}"
            )
        if groups is not None and groups.shape != expected[:1]:
            raise ValueError(f"groups {tuple(groups.shape)} must have shape {expected[:1]}, one group a row")
        if self.weighted != (weights is not None) or (weights is not None and weights.shape != expected):
            needed = f"shape {expected}" if self.weighted else "none, or MultiTaskMetrics(..., weighted=True)"
            raise ValueError(f"weights are {None if weights is None else tuple(weights.shape)}, but need {needed}")
        if weights is not None:
            self._weights.append(weights.detach().to(self.device, torch.float32, copy=True))
        # Copies, because the caller may reuse its tensors.
        self._logits.append(logits.detach().to(self.device, torch.float32, copy=True))
        self._labels.append(labels.detach().to(self.device, torch.float32, copy=True))
        if groups is None:
            self._without_groups += len(logits)
            groups = torch.zeros(len(logits), dtype=torch.int64)
        self._groups.append(groups.detach().to(self.device, torch.int64, copy=True))
        if sum(map(len, self._logits)) >= self.rows_in_memory:
            self._to_disk()

    def _to_disk(self) -> None:
        if self._folder is None:
            self._folder = Path(mkdtemp(prefix="evaluation-"))
            self._remove = finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        file = self._folder / f"{len(self._stored)}"
        try:
            self._stored.append([self._chunk(i, file.with_name(f"{file.name}-{i}")) for i in range(len(self.tasks))])
        except OSError as error:
            raise DataError(
                f"an evaluation's rows cannot be written to {self._folder} ({error.strerror}); make room there, or let "
                "TMPDIR name a folder with more."
            ) from error
        self._begin()

    def _chunk(self, column: int, file: Path | None = None) -> TaskChunk | ValueChunk:
        """The rows of a task that are in memory."""
        labels = torch.cat([batch[:, column] for batch in self._labels])
        labeled, weights = ~labels.isnan(), None
        if self.weighted:
            weights = torch.cat([batch[:, column] for batch in self._weights])
            labeled &= weights > 0
            weights = weights[labeled]
        logits = torch.cat([batch[:, column] for batch in self._logits])[labeled]
        groups = torch.cat(self._groups)[labeled]
        if (task := self.tasks[column]) in self.levels:
            are_levels = self.levels[task] is not None
            return ValueChunk.sort(logits, labels[labeled], groups, file, weights=weights, are_levels=are_levels)
        return TaskChunk.sort(logits, labels[labeled], groups, file, weights=weights)

    def compute(self) -> dict[str, TaskMetrics]:
        """Returns the metrics of each task over all ranks' rows, the same on all ranks, which all call it.

        Raises:
            UserError: a binary label is neither 0, 1 nor missing; raised on all ranks.
        """
        # Any rank may have rows without groups, so the ranks have to agree.
        has_groups = bool((gather(torch.tensor(self._without_groups, device=self.device)) == 0).all())
        metrics = {}
        for column, task in enumerate(self.tasks):
            chunks = [*(stored[column] for stored in self._stored), self._chunk(column)]
            if task in self.levels:
                values = [chunk for chunk in chunks if isinstance(chunk, ValueChunk)]
                metrics[task] = compute_values(values, self.levels[task], has_groups, self.rows_in_memory)
            else:
                binary = [chunk for chunk in chunks if isinstance(chunk, TaskChunk)]
                metrics[task] = compute_task(task, binary, has_groups, self.rows_in_memory)
        return metrics


def format_table(metrics: dict[str, TaskMetrics]) -> str:
    """Returns a table with a line for each task, `-` for an undefined metric; RMSE and MAE where some task has them.

    Example::

        # task        AUC     gAUC    logloss       NE     PCOC    rows    positives    gAUC users    gAUC rows
        # ------  -------  -------  ---------  -------  -------  ------  -----------  ------------  -----------
        # like    0.80140        -    0.21374  0.91200  1.00350   4,096          261             0            0
    """
    lines, has_values = [], any(result.rmse is not None for result in metrics.values())
    for task, result in metrics.items():
        values: list[float | None] = [result.auc, result.gauc, result.logloss, result.ne, result.pcoc]
        values += [result.rmse, result.mae] if has_values else []
        counts = [result.rows, result.positives, result.gauc_groups, result.gauc_rows]
        lines.append([task, *map(_format, values), *(f"{count:,}" for count in counts)])
    names = ["task", "AUC", "gAUC", "logloss", "NE", "PCOC", *(["RMSE", "MAE"] if has_values else [])]
    names += ["rows", "positives", "gAUC users", "gAUC rows"]
    return tabulate(lines, names, disable_numparse=True, colalign=["left"] + ["right"] * (len(names) - 1))


def _format(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.5f}"


def to_json(metrics: dict[str, TaskMetrics]) -> dict[str, dict[str, float | int | None]]:
    """Returns numbers by task and metric, None (null in JSON) for one that is undefined or infinite.

    A binary task has no RMSE and no MAE.
    """
    return {
        task: {
            name: value if math.isfinite(value) else None for name, value in asdict(result).items() if value is not None
        }
        for task, result in metrics.items()
    }


def from_json(values: dict[str, dict[str, float | int | None]]) -> dict[str, TaskMetrics]:
    """Returns the metrics from which `to_json` made `values`."""
    return {
        task: TaskMetrics(**{name: math.nan if value is None else value for name, value in result.items()})  # type: ignore[arg-type]
        for task, result in values.items()
    }
