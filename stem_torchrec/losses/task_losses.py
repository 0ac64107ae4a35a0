"""The losses of a batch by task, where not all are the mean binary cross entropy."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stem_torchrec.losses.pointwise import mean_by_task
from stem_torchrec.losses.step_rows import step_rows
from stem_torchrec.losses.table import LOSSES, TaskLoss, compared_within


def task_losses(
    tasks: Sequence[TaskLoss],
    logits: Tensor,
    labels: Tensor,
    *,
    per_rank: Tensor | None = None,
    weights: Tensor | None = None,
    groups: Mapping[str, Tensor] | None = None,
    linked: Mapping[int, tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """The loss of each task, (T,), whose mean over the ranks is that of the rows of all.

    A task with a positive weight w trains on its logits plus ln w, and its labels 1 count w times: with the rows that
    the weight stands for, the odds are w times as large. So the logits without ln w are those of the log as it is, and
    need no correction when they are evaluated or served (Elkan, IJCAI 2001, theorem 2; King and Zeng, "Logistic
    Regression in Rare Events Data", Political Analysis 2001, which subtract ln w afterwards).

    Args:
        tasks: the loss of each.
        logits: of this rank's rows, (B, T).
        labels: (B, T), NaN where missing.
        linked: by column, of tasks that are not binary, the outputs and targets that their losses compare in the place
            of logits and labels, finite where a label is missing.
        per_rank: see `mean_by_task`; where it is given, all ranks make this call, and losses of a step are of the rows
            of all ranks, else of this rank's.
        weights: of the labels, (B, T); 1 for each by default.
        groups: by feature that a task's `rows_within` names, integers (B,): its loss of a step compares rows with the
            same one. Ranks exchange what they compare once for each of these features.
    """
    known = labels.nan_to_num()
    compared = [(linked or {}).get(i, (logits[:, i], known[:, i])) for i in range(len(tasks))]
    of_rows = [_of_rows(task, *pair) for task, pair in zip(tasks, compared, strict=True)]
    losses = list(mean_by_task(torch.stack(of_rows, dim=1), labels, per_rank, weights).unbind())
    ones = torch.ones_like(labels) if weights is None else weights
    for feature in compared_within(tasks):
        columns = [i for i, each in enumerate(tasks) if LOSSES[each.kind].of_step and each.rows_within == feature]
        same = groups[feature] if feature and groups else labels.new_zeros(len(labels), dtype=torch.int64)
        z, y, w = (each[:, columns] for each in (logits, labels, ones))
        for i, rows in zip(columns, step_rows(z, y, w, same, over_ranks=per_rank is not None), strict=True):
            of_step = LOSSES[tasks[i].kind].of_step
            assert of_step is not None
            losses[i] = tasks[i].pointwise * losses[i] + (1 - tasks[i].pointwise) * of_step(rows)
    return torch.stack(losses)


def _of_rows(task: TaskLoss, logits: Tensor, labels: Tensor) -> Tensor:
    of_rows = LOSSES[task.kind].of_rows
    if task.positive_weight == 1:
        return of_rows(logits, labels, task)
    return of_rows(logits + math.log(task.positive_weight), labels, task) * torch.where(
        labels == 1, task.positive_weight, 1.0
    )
