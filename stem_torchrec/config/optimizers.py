"""The optimizers of a run and the schedule of their learning rates."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

SparseOptimizerName = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "lamb", "partial_rowwise_adam"]

_Rate = Annotated[float, Interval(ge=0, le=1e6)]
_Beta = Annotated[float, Interval(ge=0, le=0.9999999)]


@dataclass(frozen=True)
class SparseOptimizerConfig:
    """The optimizer of the tables, fused into the backward pass."""

    name: SparseOptimizerName = "rowwise_adagrad"
    """sgd, adagrad and rowwise_adagrad run everywhere; lamb and partial_rowwise_adam on CUDA; adam on CUDA,
    and on CPU with --sharding.kernel dense."""
    learning_rate: _Rate = 0.02
    """Learning rate of the tables."""
    group_learning_rates: dict[str, _Rate] = field(default_factory=dict)
    """Learning rate by group (a task, or shared) where it differs: `shared 0.02 like 0.005`."""
    weight_decay: _Rate = 0.0
    """Decay of the rows that were looked up (rowwise_adagrad, adam, lamb, partial_rowwise_adam, on CUDA)."""
    decay_whole_tables: bool = False
    """Makes the decay of adam with --sharding.kernel dense an L2 of all rows in every step, looked up or not."""
    eps: Annotated[float, Interval(ge=0, le=1000)] = 1e-8
    """Added to the root of the accumulated squares. 0 takes 0.1 over the rows of a step of all ranks for adagrad and
    rowwise_adagrad: a table row then moves the less, the less its gradients say."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    """Decay rates of the moments (adam, lamb, partial_rowwise_adam)."""
    update_unlabeled_rows: bool = False
    """Moments and decay also move a table row whose label for the task is missing, which breaks the promise that a
    task trains only its own and the shared tables. If labels are missing, such an optimizer is refused without this
    option."""


@dataclass(frozen=True)
class DenseOptimizerConfig:
    """The optimizer of experts, gates and towers."""

    name: Literal["adam", "adamw"] = "adam"
    """Adam, or AdamW with decoupled weight decay."""
    learning_rate: _Rate = 1e-3
    """Learning rate after warm-up."""
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    """Decay rates of the moments."""
    weight_decay: _Rate = 0.0
    """L2 (adam) or decoupled (adamw) decay."""


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rates of tables and dense part change over the steps."""

    warmup_steps: Annotated[int, Interval(ge=0, le=10**12)] = 0
    """Steps over which the learning rate rises linearly from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after warm-up: constant, or falling to 0 at the last step."""
    plateau_factor: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """What all learning rates are multiplied by at each evaluation without a better --train.metric; 1 keeps them."""
