"""The training loop of a run and its checkpoints."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from stem_torchrec.runtime.path_options import OutputFolder

Precision = Literal["fp32", "tf32", "bf16"]

_Factor = Annotated[float, Interval(ge=1e-6, le=1e6)]
_Steps = Annotated[int, Interval(ge=1, le=10**12)]


@dataclass(frozen=True)
class LoopConfig:
    """The training loop."""

    epochs: Annotated[int, Interval(ge=1, le=10**6)] = 1
    """Passes over the training rows."""
    max_steps: _Steps | None = None
    """Stops after this many steps, before the epochs are over."""
    eval_every: Annotated[int, Interval(ge=0, le=10**12)] | None = None
    """Steps between two evaluations; by default once per epoch. 0 makes four in an epoch, fewer where it is short."""
    fresh_tables: bool = False
    """Lets the tables begin anew with each epoch after the first, while experts, gates and towers go on: rows of rare
    ids learn their labels by heart in one pass, and the rest gains from more. Evaluate at the ends of epochs then."""
    metric: str = "auc"
    """What early stopping watches on the validation split: the mean over the tasks of auc, gauc, logloss or ne,
    or one task's (`auc/like`). Tasks whose labels are numbers or levels have auc, gauc, rmse and mae."""
    patience: Annotated[int, Interval(ge=1, le=10**6)] | None = None
    """Ends the run after this many evaluations without a better metric; by default never. The best
    weights are kept in any case."""
    best_by_task: bool = False
    """Keeps for each task the weights of its own best evaluation as well, in RUN/best_by_task: up to one model for each
    task, which take turns in an evaluation. --train.patience then waits until no task gets better."""
    freeze: tuple[str, ...] = ()
    """Groups (tasks, or shared) that the run reads and does not train: their tables, experts, gates and towers keep
    their bits, and so do the states of their optimizers. The losses of frozen tasks are still reported."""
    rate_factors: dict[str, _Factor] = field(default_factory=dict)
    """Factor by group on the learning rates of its tables (those of --sparse.group-learning-rates as well), experts,
    gates and towers: `shared 0.1`. The schedule multiplies on top."""
    clip_norm: Annotated[float, Interval(ge=1e-12, le=1e12)] | None = None
    """Largest norm of the dense gradient, taken over the parameters that the same tasks train; a larger one is scaled
    down."""
    precision: Precision = "fp32"
    """Of the matrix products of experts, gates and towers; weights stay fp32. bf16 runs under autocast, and is faster
    on GPUs and on CPUs with AMX; tf32 is for GPUs."""
    deterministic: bool = False
    """On GPUs, adds up a row's gradients in one order, so that a run that is resumed ends with the same bits also where
    a batch has an id more than 1024 times. It takes longer; on CPU a run is deterministic in any case."""
    skip_nonfinite: bool = False
    """Skips and counts batches whose loss is not finite, without touching any table. Otherwise such a loss ends the
    run, with the batch kept in RUN/nonfinite. Skipping makes the host wait for the loss of each step."""
    log_every: _Steps = 20
    """Steps between two lines of the log."""
    profile: bool = False
    """Records five early steps on every rank and writes RUN/profile: summary.txt, which lists where the time of a
    step goes, and a trace for each rank. The speed logged meanwhile counts the recording."""
    timeout: Annotated[float, Interval(ge=1, le=1e6)] = 600.0
    """Seconds without progress of a rank after which the run fails; the only rank counts as well."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What a run keeps so that it can resume after an interruption."""

    minutes: Annotated[float, Interval(ge=0, le=1e6)] | None = 10.0
    """Minutes between two checkpoints; None for none by time."""
    steps: _Steps | None = None
    """Steps between two checkpoints."""
    keep: Annotated[int, Interval(ge=1, le=10**6)] = 2
    """Checkpoints to keep, the newest; the best weights are kept in any case."""
    folder: OutputFolder | None = None
    """Folder for checkpoints, local or in a store; by default RUN/checkpoints."""
    max_failures: Annotated[int, Interval(ge=0, le=10**6)] = 3
    """Checkpoints in a row that may fail, for a full disk or a store that does not answer, before the run ends."""
