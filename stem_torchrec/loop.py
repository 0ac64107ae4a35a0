"""The training loop: steps, evaluation between slices of the iterator, early stopping.

It takes any model under a TorchRec train pipeline whose output is (losses (T,), logits (B, T)).
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from stem_torchrec.cli import nearest
from stem_torchrec.errors import DivergedError, UserError
from stem_torchrec.metrics import TaskMetrics
from stem_torchrec.profiling import StepProfiler
from stem_torchrec.progress import format_values, progress_bar, say
from stem_torchrec.run_folder import MetricsLog

Metrics = dict[str, TaskMetrics]

_METRICS = {"auc": 1, "gauc": 1, "logloss": -1, "ne": -1}
"""The metrics that can be watched, with -1 where lower is better."""


@dataclass
class EarlyStopping:
    """Keeps the best evaluation and counts those since.

    Args:
        metric: auc, gauc, logloss or ne for the mean over the tasks, or `metric/task`.
        patience: evaluations without a better one after which to stop; never if None.
        tasks: names of the tasks.
        has_groups: whether there is a group column, without which gauc is undefined.

    Raises UserError for an unknown metric or task, and for gauc without groups.
    """

    metric: str
    patience: int | None
    tasks: Sequence[str]
    has_groups: bool = True
    best: float = math.nan
    waited: int = 0

    def __post_init__(self) -> None:
        name, _, task = self.metric.partition("/")
        each = [f"{metric}/{known}" for metric in _METRICS for known in self.tasks]
        if name not in _METRICS or (task and task not in self.tasks):
            raise UserError(
                f"--train.metric is {self.metric!r}, but must be {', '.join(_METRICS)} or one task's, as in "
                f"auc/{self.tasks[0]}{nearest(self.metric, [*_METRICS, *each])}"
            )
        if name == "gauc" and not self.has_groups:
            raise UserError(f"--train.metric is {self.metric!r}, but schema.json names no group column; choose auc.")

    def score(self, metrics: Metrics) -> float:
        """The watched metric, higher is better: its mean over the tasks, negative where lower is better."""
        name, _, task = self.metric.partition("/")
        values = [getattr(metrics[t], name) for t in ([task] if task else self.tasks)]
        return _METRICS[name] * sum(values) / len(values)

    def better(self, metrics: Metrics) -> bool:
        """Whether `metrics` are the best so far; raises UserError where they leave the watched metric undefined."""
        value = self.score(metrics)
        if math.isnan(value):
            if any(task.rows and math.isnan(task.logloss) for task in metrics.values()):
                raise DivergedError("the model's predictions are not numbers any more; lower the learning rates.")
            raise UserError(
                f"--train.metric is {self.metric!r}, but the validation split leaves it undefined: a task lacks labels "
                "of both kinds."
            )
        if math.isnan(self.best) or value > self.best:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    @property
    def stop(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.waited >= self.patience


def fit(
    pipeline: TrainPipelineSparseDist,
    batches: Callable[[int], Iterable[Batch]],
    *,
    tasks: Sequence[str],
    steps: int,
    steps_per_epoch: int | None = None,
    schedule: LRScheduler | None = None,
    evaluate: Callable[[], Metrics] | None = None,
    eval_every: int | None = None,
    stopping: EarlyStopping | None = None,
    keep: Callable[[int, Metrics], None] | None = None,
    log_every: int = 20,
    log: MetricsLog | None = None,
    profiler: StepProfiler | None = None,
) -> None:
    """Trains for `steps` steps over as many epochs as they take, or until early stopping.

    Args:
        pipeline: holds the model in training mode and its optimizer.
        batches: this rank's batches of an epoch, counted from 0, at least `steps_per_epoch` of them.
        tasks: names of the tasks.
        steps: steps to make.
        steps_per_epoch: steps of an epoch, the same on every rank; by default one epoch makes all `steps`.
        schedule: stepped after each step.
        evaluate: makes metrics of the validation split; called when the pipeline is empty.
        eval_every: steps between two evaluations; by default those of an epoch. Another comes after the last step.
        stopping: judges the evaluations.
        keep: called with the step and the metrics of each evaluation that is the best so far, by `stopping`; of every
            evaluation without it.
        log_every: steps between two lines.
        log: gets all numbers.
        profiler: records some of the steps.

    Raises UserError where an epoch has fewer batches than steps.
    """
    steps_per_epoch = steps_per_epoch or steps
    eval_every = eval_every or steps_per_epoch
    step = 0
    meter = _Meter(tasks)
    with progress_bar(steps, "step") as bar, profiler or nullcontext():
        for epoch in range(math.ceil(steps / steps_per_epoch)):
            iterator = iter(batches(epoch))
            end = min((epoch + 1) * steps_per_epoch, steps)
            while step < end:
                length = min(end - step, eval_every - step % eval_every)
                # The pipeline reads ahead within a slice, so it is empty when the slice ends.
                for losses, logits in _outputs(pipeline, islice(iterator, length)):
                    if schedule is not None:
                        schedule.step()
                    step += 1
                    length -= 1
                    bar.update()
                    meter.add(losses, rows=len(logits))
                    if step % log_every == 0 or step == steps:
                        values = meter.read()
                        if log is not None:
                            log.write(step, values)
                        say(f"step {step}  {meter.speed(values)}  {format_values(_losses(values))}")
                    if profiler is not None:
                        profiler.step()
                if length:
                    raise UserError(
                        f"the batches of epoch {epoch} ended after step {step}, {end - step} too early for "
                        f"{steps_per_epoch} steps an epoch; give fewer steps, or batches that last for them."
                    )
                if evaluate is not None and (step % eval_every == 0 or step == steps):
                    metrics = evaluate()
                    values = evaluation_values(metrics)
                    if log is not None:
                        log.write(step, values)
                    say(f"step {step}  epoch {step / steps_per_epoch:.2f}  {format_values(_ranking(values))}")
                    if (stopping is None or stopping.better(metrics)) and keep is not None:
                        keep(step, metrics)
                    meter.restart()
                if stopping is not None and stopping.stop:
                    say(f"step {step}  no better {stopping.metric} in {stopping.waited} evaluations: stopping")
                    return


def _outputs(pipeline: TrainPipelineSparseDist, batches: Iterator[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    """The losses (T,) and logits (B, T) of a step on each batch; at the end the pipeline is empty."""
    while True:
        try:
            output = pipeline.progress(batches)
        except StopIteration:
            return
        yield output


def evaluation_values(metrics: Metrics) -> dict[str, float | int | None]:
    """Metrics by name, as `valid/like/auc`."""
    return {
        f"valid/{task}/{name}": None if math.isnan(value) else value
        for task, values in metrics.items()
        for name, value in vars(values).items()
    }


def _ranking(values: dict[str, float | int | None]) -> dict[str, float | int | None]:
    return {name: value for name, value in values.items() if name.endswith("auc")}


def _losses(values: dict[str, float | int | None]) -> dict[str, float | int | None]:
    return {name.removeprefix("train/"): value for name, value in values.items() if "loss/" in name}


class _Meter:
    """Mean losses and speed since the last reading."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = tasks
        self.restart()

    def restart(self) -> None:
        self.steps = 0
        self.rows = 0
        self.sum: Tensor | None = None
        self.start = time.perf_counter()

    def add(self, losses: Tensor, *, rows: int) -> None:
        if len(losses) != len(self.tasks):
            raise UserError(f"the model has {len(losses)} losses, but the tasks are {list(self.tasks)}; name each.")
        self.sum = losses.clone() if self.sum is None else self.sum.add_(losses)
        self.rows += rows
        self.steps += 1

    def read(self) -> dict[str, float | int | None]:
        assert self.sum is not None
        total = torch.cat([self.sum.double(), self.sum.new_tensor([self.rows], dtype=torch.float64)])
        dist.all_reduce(total)
        # .tolist() waits for the device, so only every log_every steps.
        *sums, rows = total.tolist()
        seconds = time.perf_counter() - self.start
        ranks, steps = dist.get_world_size(), self.steps
        self.restart()
        return {
            **{f"train/loss/{task}": value / (steps * ranks) for task, value in zip(self.tasks, sums, strict=True)},
            "train/step_ms": seconds / steps * 1000,
            "train/samples_per_second": rows / seconds,
        }

    @staticmethod
    def speed(values: dict[str, float | int | None]) -> str:
        samples = values["train/samples_per_second"] or 0
        return f"{values['train/step_ms']:.0f} ms  {samples / 1000:.1f}k samples/s"
