"""The loss of each task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from annotated_types import Interval

EVERY_TASK = "*"
"""Stands for every task that is not named, where an option has a value by task."""
ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class LossConfig:
    """The loss of each task: by default bce of a binary label, mse of a number, coral of an ordinal one."""

    kinds: dict[str, str] = field(default_factory=dict)
    """Loss by task where it is not the default: `like focal buy pairs`, where `*` stands for every task that is not
    named. focal counts rows less that are predicted well, smoothed trains on labels off 0 and 1, pairs adds the order
    of pairs of rows to bce, and jrc a softmax over rows. A label that is a number has mse or huber, an ordinal one
    coral."""
    positive_weights: dict[str, Annotated[float, Interval(ge=1e-3, le=1e6)]] = field(default_factory=dict)
    """How many times a label 1 counts, by task: `like 10`, and `*` as above. Predictions stay probabilities of the log
    as it is: the logarithm of the weight is added to the logits in the loss alone."""
    focal_gamma: Annotated[float, Interval(ge=0, le=10)] = 2.0
    """Exponent of focal; 0 is bce."""
    smoothing: Annotated[float, Interval(ge=0, le=0.5)] = 0.05
    """Share of smoothed's labels that is 1/2: 0 becomes half of it."""
    pointwise: Annotated[float, Interval(ge=0.001, le=1)] = 0.5
    """Share of bce in pairs and jrc; the rest is for the order of rows."""
    huber_delta: Annotated[float, Interval(ge=0.001, le=1000)] = 1.0
    """Error from which huber grows no faster than in proportion, in standard deviations of the label."""
    rows_within: str = ""
    """Sparse feature, such as the user's id, within whose values pairs and jrc compare rows; by default they compare
    all rows of a step."""


def of_task(values: Mapping[str, ValueT], task: str, default: ValueT) -> ValueT:
    """The value of a task: its own, that of `*`, or the default.

    Example::

        of_task({"like": "focal", "*": "jrc"}, "finish", "bce")  # "jrc"
    """
    return values.get(task, values.get(EVERY_TASK, default))
