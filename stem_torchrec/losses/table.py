"""The table of losses: each has one line here, which `--loss.kinds` names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from torch import Tensor

from stem_torchrec.config.loss import EVERY_TASK, LossConfig, of_task, of_these_tasks
from stem_torchrec.data.schema import LabelKind
from stem_torchrec.losses.jrc import jrc
from stem_torchrec.losses.pairs import pairs
from stem_torchrec.losses.pointwise import bce, coral, focal, huber, mse, smoothed
from stem_torchrec.losses.step_rows import StepRows
from stem_torchrec.runtime.errors import UserError, nearest


@dataclass(frozen=True)
class TaskLoss:
    """The loss of one task; plain values, which FX can trace."""

    kind: str = "bce"
    """A key of LOSSES."""
    positive_weight: float = 1.0
    """How many times a label 1 counts."""
    focal_gamma: float = 2.0
    smoothing: float = 0.05
    pointwise: float = 0.5
    """Share of the loss of rows beside that of a step."""
    huber_delta: float = 1.0
    """In standard deviations of the label."""
    rows_within: str = ""
    """Sparse feature within whose ids a loss of a step compares rows; all rows if empty."""


@dataclass(frozen=True)
class Loss:
    """A line of the table."""

    of_rows: Callable[[Tensor, Tensor, TaskLoss], Tensor]
    """From outputs and targets, of a binary task logits and labels (B,), to losses (B,)."""
    of_step: Callable[[StepRows], Tensor] | None = None
    """From the rows of all ranks to a loss, whose mean over the ranks it is; None for a loss of rows alone."""
    labels: LabelKind = "binary"
    """What the labels of its tasks are."""


def _bce(logits: Tensor, labels: Tensor, _: TaskLoss) -> Tensor:
    return bce(logits, labels)


LOSSES: Mapping[str, Loss] = {
    "bce": Loss(_bce),
    "focal": Loss(lambda logits, labels, task: focal(logits, labels, task.focal_gamma)),
    "smoothed": Loss(lambda logits, labels, task: smoothed(logits, labels, task.smoothing)),
    "pairs": Loss(_bce, pairs),
    "jrc": Loss(_bce, jrc),
    "mse": Loss(lambda outputs, targets, _: mse(outputs, targets), labels="number"),
    "huber": Loss(lambda outputs, targets, task: huber(outputs, targets, task.huber_delta), labels="number"),
    "coral": Loss(lambda outputs, targets, _: coral(outputs, targets), labels="ordinal"),
}
"""Every loss by its name; the first for a kind of labels is its default."""


def losses_of_tasks(
    config: LossConfig, tasks: Sequence[str], not_binary: Mapping[str, LabelKind] | None = None
) -> tuple[TaskLoss, ...]:
    """The loss of each task; empty where all have bce.

    Args:
        config: the losses that are not the default.
        tasks: names of the tasks.
        not_binary: what the labels are of tasks that are not binary.

    Raises UserError for a name that no task or no loss has, in any option, and for a loss of other labels.

    Example::

        losses_of_tasks(LossConfig(kinds={"like": "focal"}), ("finish", "like"))  # (TaskLoss("bce"), TaskLoss("focal"))
    """
    for option in fields(config):
        values = getattr(config, option.name)
        check_tasks(f"--loss.{option.name.replace('_', '-')}", values if isinstance(values, dict) else {}, tasks)
    labels: dict[str, LabelKind] = {task: (not_binary or {}).get(task, "binary") for task in tasks}
    kinds = {task: of_task(config.kinds, task, _losses_of(labels[task])[0]) for task in tasks}
    for task, kind in kinds.items():
        known = _losses_of(labels[task])
        if kind not in known:
            what = "" if labels[task] == "binary" and kind not in LOSSES else f", whose label is of kind {labels[task]}"
            raise UserError(
                f"--loss.kinds has {kind!r} for {task!r}{what}, but must have one of {', '.join(known)}"
                f"{nearest(kind, known) or '.'}"
            )
        if task in config.positive_weights and labels[task] != "binary":
            raise UserError(
                f"--loss.positive-weights names {task!r}, but its label is of kind {labels[task]}, and only binary "
                "labels have positives; leave it out, or weigh rows by label_weights in schema.json."
            )
    losses = tuple(
        TaskLoss(
            kinds[task],
            of_task(config.positive_weights, task, 1.0) if labels[task] == "binary" else 1.0,
            of_task(config.focal_gamma, task, TaskLoss.focal_gamma),
            of_task(config.smoothing, task, TaskLoss.smoothing),
            of_task(config.pointwise, task, TaskLoss.pointwise),
            of_task(config.huber_delta, task, TaskLoss.huber_delta),
            of_task(config.rows_within, task, TaskLoss.rows_within),
        )
        for task in tasks
    )
    return losses if any(loss.kind != "bce" or loss.positive_weight != 1 for loss in losses) else ()


def _losses_of(labels: LabelKind) -> list[str]:
    return [kind for kind, loss in LOSSES.items() if loss.labels == labels]


def check_tasks(option: str, names: Mapping[str, object], tasks: Sequence[str]) -> None:
    """Raises UserError, which names the option, for a name that no task has; `*` is all."""
    for name in names:
        if name not in (*tasks, EVERY_TASK):
            raise UserError(
                f"{option} names the task {name!r}, but the tasks are {', '.join(tasks)}{nearest(name, tasks) or '.'}"
            )


def of_some_tasks(config: LossConfig, tasks: Sequence[str]) -> LossConfig:
    """What a configuration has for these tasks, to train a part of them."""
    return LossConfig(**{each.name: of_these_tasks(getattr(config, each.name), tasks) for each in fields(config)})


def compared_within(losses: Sequence[TaskLoss]) -> tuple[str, ...]:
    """The features within whose ids some losses compare the rows of a step, each once; "" stands for all rows."""
    return tuple(dict.fromkeys(loss.rows_within for loss in losses if LOSSES[loss.kind].of_step is not None))
