"""The training loop: steps, evaluation between slices of the iterator, early stopping, pauses for checkpoints.

It takes any model under a TorchRec train pipeline whose output is (losses (T,), logits (B, T)).
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Event
from typing import Protocol

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from stem_torchrec.metrics.multi_task import to_json
from stem_torchrec.profiles.step_profiler import StepProfiler
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.hang_detection import set_activity
from stem_torchrec.runtime.progress import format_values, log_rank0, progress_bar
from stem_torchrec.training.early_stopping import EarlyStopping
from stem_torchrec.training.evaluation import EvaluationCut
from stem_torchrec.training.meter import Meter
from stem_torchrec.training.run_folder import MetricsLog
from stem_torchrec.training.watched_metric import Metrics


@dataclass(frozen=True)
class Place:
    """Between two steps of a run."""

    step: int = 0
    """Steps made."""
    epoch: int = 0
    """Counted from 0."""
    left: int | None = None
    """Steps left of the epoch; all if None."""
    evaluate: bool = False
    """Whether an evaluation is due."""
    losses: Tensor | None = None
    """What `Meter.state` says of the steps since the last line of the log."""


class Watch(Protocol):
    """What may pause a run between two steps, on all ranks at the same one."""

    every: int | None
    """Steps between two pauses that are known beforehand."""

    def should_pause(self, step: int, batch: Batch, losses: Tensor) -> bool:
        """Whether to pause as soon as the steps under way are made; called after each step with its losses (T,)."""

    def check_finite(self) -> None:
        """Called when the pipeline is empty; raises an error for what must not be evaluated or saved."""

    def on_pause(self, place: Place) -> None:
        """Called between two steps, the pipeline being empty; what it raises ends the run."""


def fit(
    pipeline: TrainPipelineSparseDist,
    batches: Callable[[int], Iterable[Batch]],
    *,
    tasks: Sequence[str],
    steps: int,
    steps_per_epoch: int | None = None,
    start: Place = Place(),
    schedule: LRScheduler | None = None,
    evaluate: Callable[[], Metrics] | None = None,
    eval_every: int | None = None,
    stopping: EarlyStopping | None = None,
    keep: Callable[[int, Metrics], None] | None = None,
    counts: Callable[[], Mapping[str, int]] | None = None,
    watch: Watch | None = None,
    log_every: int = 20,
    log: MetricsLog | None = None,
    profiler: StepProfiler | None = None,
) -> None:
    """Trains for `steps` steps over as many epochs as they take, or until early stopping.

    Args:
        pipeline: holds the model in training mode and its optimizer.
        batches: this rank's batches of an epoch, counted from 0, at least `steps_per_epoch` of them; of the epoch in
            which the run starts those that are left.
        tasks: names of the tasks.
        steps: steps to make, those before `start` among them.
        steps_per_epoch: steps of an epoch, the same on every rank; by default one epoch makes all `steps`.
        start: where to begin.
        schedule: stepped after each step.
        evaluate: makes metrics of the validation split; called when the pipeline is empty.
        eval_every: steps between two evaluations; by default one ends each epoch. Another comes after the last step.
        stopping: judges the evaluations.
        keep: called with the step and the metrics of each evaluation that is the best so far, by `stopping`; of every
            evaluation without it.
        counts: what is logged with each evaluation beside its metrics, by name.
        watch: may pause the run, for a checkpoint, or end it.
        log_every: steps between two lines.
        log: gets all numbers.
        profiler: records some of the steps.

    Raises UserError where an epoch has fewer batches than steps.
    """
    steps_per_epoch = steps_per_epoch or steps
    step, epoch, asked = start.step, start.epoch, Event()
    epoch_end = step + (steps_per_epoch if start.left is None else start.left)
    meter = Meter(tasks)
    if start.losses is not None:
        meter.restore(start.losses)
    fed: deque[Batch] = deque()

    def judge() -> bool:
        """Evaluates; whether that is the end."""
        assert evaluate is not None
        try:
            metrics = evaluate()
        except EvaluationCut:
            assert watch is not None
            watch.on_pause(Place(step, epoch, epoch_end - step, evaluate=True, losses=meter.state()))
            raise
        values = evaluation_values(metrics)
        epochs = epoch + 1 - (epoch_end - step) / steps_per_epoch
        log_rank0(f"step {step}  epoch {epochs:.2f}  {format_values(_ranking(values))}")
        try:
            if (stopping is None or stopping.better(metrics)) and keep is not None:
                keep(step, metrics)
        finally:
            # Behind it, so that what could not be kept counts.
            values |= counts() if counts is not None else {}
            if log is not None:
                log.write(step, values)
        meter.restart()
        if stopping is not None and stopping.stop:
            log_rank0(f"step {step}  no better {stopping.metric.name} in {stopping.waited} evaluations: stopping")
            return True
        return False

    with progress_bar(steps, "step") as bar, profiler or nullcontext():
        bar.update(step)
        if start.evaluate and judge():
            return
        while step < steps:
            iterator, end = iter(batches(epoch)), min(epoch_end, steps)
            while step < end:
                due = min(
                    [end, *(step + every - step % every for every in (eval_every, watch and watch.every) if every)]
                )
                # The pipeline reads ahead within a slice, so it is empty when the slice ends.
                for losses, logits in _outputs(pipeline, _until(iterator, due - step, asked.is_set, fed)):
                    if schedule is not None:
                        schedule.step()
                    step += 1
                    bar.update()
                    meter.add(losses, rows=len(logits))
                    if step % log_every == 0 or step == steps:
                        values = meter.read()
                        if log is not None:
                            log.write(step, values)
                        log_rank0(f"step {step}  {meter.speed(values)}  {format_values(_losses(values))}")
                    if profiler is not None:
                        profiler.step()
                    batch = fed.popleft()
                    if watch is not None and watch.should_pause(step, batch, losses):
                        asked.set()
                if step < due and not asked.is_set():
                    raise UserError(
                        f"the batches of epoch {epoch} ended after step {step}, {end - step} too early for "
                        f"{steps_per_epoch} steps an epoch; give fewer steps, or batches that last for them."
                    )
                if watch is not None:
                    watch.check_finite()
                at_end = step == end if eval_every is None else step % eval_every == 0
                if evaluate is not None and (at_end or step == steps) and judge():
                    return
                if watch is not None and (asked.is_set() or (watch.every and step % watch.every == 0)):
                    asked.clear()
                    begin = time.perf_counter()
                    watch.on_pause(Place(step, epoch, epoch_end - step, losses=meter.state()))
                    meter.pause(time.perf_counter() - begin)
            epoch, epoch_end = epoch + 1, epoch_end + steps_per_epoch


def _outputs(pipeline: TrainPipelineSparseDist, batches: Iterator[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    """The losses (T,) and logits (B, T) of a step on each batch; at the end the pipeline is empty."""
    while True:
        set_activity("making a training step")
        try:
            output = pipeline.progress(batches)
        except StopIteration:
            return
        yield output


def _until(batches: Iterator[Batch], length: int, asked: Callable[[], bool], fed: deque[Batch]) -> Iterator[Batch]:
    """The next `length` batches, or those before a pause is asked for; each is put into `fed` as well."""
    while length and not asked():
        set_activity("reading a batch of the training split")
        try:
            batch = next(batches)
        except StopIteration:
            return
        set_activity("making a training step")
        length -= 1
        fed.append(batch)
        yield batch


def evaluation_values(metrics: Metrics) -> dict[str, float | int | None]:
    """Metrics by name, as `valid/like/auc`."""
    return {f"valid/{task}/{name}": v for task, values in to_json(metrics).items() for name, v in values.items()}


def _ranking(values: dict[str, float | int | None]) -> dict[str, float | int | None]:
    return {name: value for name, value in values.items() if name.endswith("auc")}


def _losses(values: dict[str, float | int | None]) -> dict[str, float | int | None]:
    return {name.removeprefix("train/"): value for name, value in values.items() if "loss/" in name}
