"""The training loop: steps, evaluation between slices of the iterator, early stopping.

It takes any model under a TorchRec train pipeline whose output is (losses (T,), logits (B, T)).
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch.distributed as dist
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from stem_torchrec.cli import nearest
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.errors import UserError
from stem_torchrec.metrics import TaskMetrics
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

    def better(self, metrics: Metrics) -> bool:
        """Whether `metrics` are the best so far; raises UserError where they leave the watched metric undefined."""
        name, _, task = self.metric.partition("/")
        values = [getattr(metrics[t], name) for t in ([task] if task else self.tasks)]
        value = sum(values) / len(values)
        if math.isnan(value):
            if any(task.rows and math.isnan(task.logloss) for task in metrics.values()):
                raise UserError("the model's predictions are not numbers any more; lower the learning rates.")
            raise UserError(
                f"--train.metric is {self.metric!r}, but the validation split leaves it undefined: a task lacks labels "
                "of both kinds."
            )
        if math.isnan(self.best) or _METRICS[name] * value > _METRICS[name] * self.best:
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
    *,
    reader: ParquetReader,
    batches: Iterable,
    schedule: LRScheduler,
    steps: int,
    eval_every: int,
    log_every: int,
    evaluate: Callable[[], Metrics],
    keep: Callable[[int, Metrics], None],
    stopping: EarlyStopping,
    log: MetricsLog,
) -> None:
    """Trains for `steps` steps over as many epochs as they take, or until early stopping.

    Args:
        pipeline: holds the model in training mode and its optimizer.
        reader: told the epoch, so that it chooses the order of its rows.
        batches: a loader over `reader`; iterated once per epoch.
        schedule: stepped after each step.
        steps: steps to make.
        eval_every: steps between two evaluations; another comes after the last step.
        log_every: steps between two lines.
        evaluate: makes metrics of the validation split; called when the pipeline is empty.
        keep: called with the step and the metrics of each evaluation that is the best so far.
        stopping: judges the evaluations.
        log: gets all numbers.
    """
    global_batch = reader.batch_size * dist.get_world_size()
    step = 0
    meter = _Meter(stopping.tasks, global_batch)
    with progress_bar(steps, "step") as bar:
        for epoch in range(math.ceil(steps / reader.steps)):
            reader.set_epoch(epoch)
            iterator = iter(batches)
            end = min((epoch + 1) * reader.steps, steps)
            while step < end:
                length = min(end - step, eval_every - step % eval_every)
                # The pipeline reads ahead within a slice, so it is empty when the slice ends.
                slice_ = islice(iterator, length)
                for _ in range(length):
                    losses, _ = pipeline.progress(slice_)
                    schedule.step()
                    step += 1
                    bar.update()
                    meter.add(losses)
                    if step % log_every == 0 or step == steps:
                        values = meter.read()
                        log.write(step, values)
                        say(f"step {step}  {meter.speed(values)}  {format_values(_losses(values))}")
                if step % eval_every == 0 or step == steps:
                    metrics = evaluate()
                    values = evaluation_values(metrics)
                    log.write(step, values)
                    say(f"step {step}  epoch {step / reader.steps:.2f}  {format_values(_ranking(values))}")
                    if stopping.better(metrics):
                        keep(step, metrics)
                    meter.restart()
                if stopping.stop:
                    say(f"step {step}  no better {stopping.metric} in {stopping.waited} evaluations: stopping")
                    return


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

    def __init__(self, tasks: Sequence[str], global_batch: int) -> None:
        self.tasks = tasks
        self.global_batch = global_batch
        self.restart()

    def restart(self) -> None:
        self.steps = 0
        self.sum: Tensor | None = None
        self.start = time.perf_counter()

    def add(self, losses: Tensor) -> None:
        self.sum = losses.clone() if self.sum is None else self.sum.add_(losses)
        self.steps += 1

    def read(self) -> dict[str, float | int | None]:
        assert self.sum is not None
        dist.all_reduce(self.sum)
        # .tolist() waits for the device, so only every log_every steps.
        means = (self.sum / (self.steps * dist.get_world_size())).tolist()
        seconds = (time.perf_counter() - self.start) / self.steps
        self.restart()
        return {
            **{f"train/loss/{task}": mean for task, mean in zip(self.tasks, means, strict=True)},
            "train/step_ms": seconds * 1000,
            "train/samples_per_second": self.global_batch / seconds,
        }

    @staticmethod
    def speed(values: dict[str, float | int | None]) -> str:
        samples = values["train/samples_per_second"] or 0
        return f"{values['train/step_ms']:.0f} ms  {samples / 1000:.1f}k samples/s"
