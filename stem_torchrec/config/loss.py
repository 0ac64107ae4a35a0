"""The loss of each task."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated, TypeAlias, TypeVar

from annotated_types import Interval

EVERY_TASK = "*"
"""Stands for every task that is not named, where an option has a value by task."""
ValueT = TypeVar("ValueT")
ByTask: TypeAlias = ValueT | dict[str, ValueT]
"""One value for all tasks, or values by task."""
_Gamma = Annotated[float, Interval(ge=0, le=10)]
_Smoothing = Annotated[float, Interval(ge=0, le=0.5)]
_Pointwise = Annotated[float, Interval(ge=0.001, le=1)]
_Delta = Annotated[float, Interval(ge=0.001, le=1000)]


@dataclass(frozen=True)
class LossConfig:
    """The loss of each task: by default bce of a binary label, mse of a number, coral of an ordinal one.

    Where an option has one value, it is that of all tasks; `like 1 finish 3` gives values by task, and `*` stands for
    every task that is not named. A task without a value has the default.
    """

    kinds: dict[str, str] = field(default_factory=dict)
    """Loss by task where it is not the default: `like focal buy pairs`, where `*` stands for every task that is not
    named. focal counts rows less that are predicted well, smoothed trains on labels off 0 and 1, pairs adds the order
    of pairs of rows to bce, and jrc a softmax over rows. A label that is a number has mse or huber, an ordinal one
    coral."""
    positive_weights: dict[str, Annotated[float, Interval(ge=1e-3, le=1e6)]] = field(default_factory=dict)
    """How many times a label 1 counts, by task: `like 10`, and `*` as above. Predictions stay probabilities of the log
    as it is: the logarithm of the weight is added to the logits in the loss alone."""
    focal_gamma: ByTask[_Gamma] = 2.0
    """Exponent of focal; 0 is bce. One number for all tasks, or numbers by task: `like 1`, and `*` as above."""
    smoothing: ByTask[_Smoothing] = 0.05
    """Share of smoothed's labels that is 1/2: 0 becomes half of it. One number, or numbers by task."""
    pointwise: ByTask[_Pointwise] = 0.5
    """Share of bce in pairs and jrc; the rest is for the order of rows. One number, or numbers by task."""
    huber_delta: ByTask[_Delta] = 1.0
    """Error from which huber grows no faster than in proportion, in standard deviations of the label. One number, or
    numbers by task."""
    rows_within: ByTask[str] = ""
    """Sparse feature, such as the user's id, within whose values pairs and jrc compare rows; by default they compare
    all rows of a step. One feature, or features by task: `like user_id`."""


def of_task(values: ByTask[ValueT], task: str, default: ValueT) -> ValueT:
    """The value of a task: its own, that of `*`, or the default.

    Example::

        of_task({"like": "focal", "*": "jrc"}, "finish", "bce")  # "jrc"
        of_task(2.0, "finish", 1.0)                              # 2.0
    """
    if not isinstance(values, dict):
        return values
    by_task: dict[str, ValueT] = values
    return by_task.get(task, by_task.get(EVERY_TASK, default))


def of_these_tasks(values: ByTask[ValueT], tasks: Collection[str]) -> ByTask[ValueT]:
    """The values without those of other tasks.

    Example::

        of_these_tasks({"like": 1.0, "finish": 3.0, "*": 2.0}, ["like"])  # {"like": 1.0, "*": 2.0}
    """
    if not isinstance(values, dict):
        return values
    return {task: value for task, value in values.items() if task in tasks or task == EVERY_TASK}
