"""How the tasks are balanced: the weights of their losses, and their gradients at the shared tables."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

TaskWeights = Literal["fixed", "uncertainty", "dwa", "pareto"]
TaskGradients = Literal["sum", "pcgrad", "cagrad", "gradcraft", "mgda"]
_Part = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True)
class BalanceConfig:
    """Weights of the tasks that learn, and gradients that are balanced where tasks share tables."""

    weights: TaskWeights = "fixed"
    """Weight of each task's loss, on top of --model.task-weights: fixed is 1, uncertainty falls with the task's loss,
    dwa rises with how slowly it falls, pareto is the combination of the tasks' gradients at the shared tables of
    least norm."""
    gradients: TaskGradients = "sum"
    """What the shared tables get of the tasks' gradients: their sum, or what PCGrad, CAGrad, GradCraft or MGDA makes
    of them. What belongs to a task, and the experts above the shared tables, get the plain gradient."""
    rate: Annotated[float, Interval(gt=0, le=1)] = 0.01
    """Of uncertainty: the learning rate of the logarithms of the variances."""
    temperature: Annotated[float, Interval(ge=1e-3, le=1e6)] = 2.0
    """Of dwa: a higher one makes the weights more alike."""
    period: Annotated[int, Interval(ge=0, le=10**9)] = 500
    """Of dwa: steps whose mean loss is compared with that of as many steps before; 0, as in the paper, is an epoch. The
    weights are 1 in the first two periods."""
    caution: Annotated[float, Interval(ge=0, le=0.999)] = 0.4
    """Of cagrad: how far from the mean gradient it looks, as a share of its length; 0 is the mean."""
    magnitude: _Part = 0.5
    """Of gradcraft: how far the lengths of the gradients move to the largest, from 0, not at all, to 1."""
    memory: Annotated[float, Interval(ge=0, le=0.9999)] = 0.0
    """Of gradcraft: the share of a length that comes from the steps before; 0, as in the paper, is the step's alone."""
    margin: _Part = 1e-8
    """Of gradcraft: the cosine between a gradient and those that it has been in conflict with, afterwards."""

    @property
    def reads_gradients(self) -> bool:
        """Whether a step computes the gradient of each task at the shared tables."""
        return self.gradients != "sum" or self.weights == "pareto"

    @property
    def is_on(self) -> bool:
        """Whether anything is balanced."""
        return self.reads_gradients or self.weights != "fixed"
