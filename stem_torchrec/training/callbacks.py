"""What happens around the steps of a run: its log, its best weights, its profile, and what a user adds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tqdm import tqdm

from stem_torchrec.data.label_counts import labels_of_step
from stem_torchrec.metrics.multi_task import to_json
from stem_torchrec.profiles.step_profiler import StepProfiler
from stem_torchrec.runtime.progress import format_values, log_rank0
from stem_torchrec.training.best_by_task import BestByTask
from stem_torchrec.training.early_stopping import EarlyStopping
from stem_torchrec.training.gate_weights import RowHistogram
from stem_torchrec.training.meter import Meter
from stem_torchrec.training.metrics_log import MetricsLog
from stem_torchrec.training.rate_schedule import RateSchedule
from stem_torchrec.training.watched_metric import Metrics

if TYPE_CHECKING:
    from stem_torchrec.training.loop import StepOutput, TrainLoop


class Callback:
    """Four hooks, which do nothing here. All ranks call them at the same steps.

    Example::

        class StopAt(Callback):
            def after_evaluation(self, loop: TrainLoop, metrics: Metrics) -> None:
                loop.state.stopped = metrics["like"].auc > 0.8
    """

    every: int | None = None
    """Steps between two pauses that this callback needs; None for no regular pause."""

    def after_step(self, loop: TrainLoop, output: StepOutput) -> bool:
        """Called after each step; True asks for a pause as soon as the pipeline is empty."""
        return False

    def before_epoch(self, loop: TrainLoop) -> None:
        """Called before the first step of each epoch but the first, when the pipeline is empty."""

    def on_pause(self, loop: TrainLoop) -> None:
        """Called between two steps when the pipeline is empty, after the evaluation if one is due."""

    def after_evaluation(self, loop: TrainLoop, metrics: Metrics) -> None:
        """Called with the metrics of each evaluation."""


def call_after_evaluation(callbacks: Sequence[Callback], loop: TrainLoop, metrics: Metrics) -> None:
    """Calls the hook of each in turn, also after one has raised an error, which it then raises."""
    with ExitStack() as stack:
        for callback in reversed(callbacks):
            stack.callback(callback.after_evaluation, loop, metrics)


class KeepBest(Callback):
    """Keeps the weights of the best evaluations, and stops a run that does not get better.

    Args:
        keep: called with the step and the metrics of each evaluation that is the best so far.
        stopping: decides which is; without it each evaluation is kept.
    """

    def __init__(self, keep: Callable[[int, Metrics], None], stopping: EarlyStopping | None = None) -> None:
        self._keep, self._stopping = keep, stopping

    def after_evaluation(self, loop: TrainLoop, metrics: Metrics) -> None:
        """Keeps the weights, or counts one more evaluation without a better metric."""
        stopping, step = self._stopping, loop.state.step
        if stopping is None or stopping.better(metrics):
            self._keep(step, metrics)
        if stopping is not None and stopping.stop:
            log_rank0(f"step {step}  no better {stopping.metric.name} in {stopping.waited} evaluations: stopping")
            loop.state.stopped = True


class LowerRates(Callback):
    """Lowers the learning rates after each evaluation without a better metric, as `--schedule.plateau-factor` has it.

    Args:
        schedule: of the run.
        stopping: counts the evaluations, those before the run resumed among them.
    """

    def __init__(self, schedule: RateSchedule, stopping: EarlyStopping) -> None:
        self._schedule, self._stopping = schedule, stopping
        schedule.set_plateaus(stopping.plateaus)

    def after_evaluation(self, loop: TrainLoop, metrics: Metrics) -> None:
        """Sets the rates of the next step."""
        self._schedule.set_plateaus(self._stopping.plateaus)


class KeepBestByTask(Callback):
    """Keeps the weights of each task's best evaluation, and stops a run in which no task gets better.

    Args:
        best: what is kept.
    """

    def __init__(self, best: BestByTask) -> None:
        self._best = best

    def after_evaluation(self, loop: TrainLoop, metrics: Metrics) -> None:
        """Keeps the weights if some task has got better."""
        step = loop.state.step
        self._best.keep(step, metrics)
        if self._best.stop:
            waited = min(stopping.waited for stopping in self._best.stoppings.values())
            log_rank0(f"step {step}  no task better in {waited} evaluations: stopping")
            loop.state.stopped = True


class TrainingLog(Callback):
    """Losses and speed every few steps, and all metrics of each evaluation.

    Args:
        meter: sums up the losses.
        every_steps: steps between two lines.
        file: gets all numbers; only lines on rank 0's terminal without it.
        beside: what is logged with each evaluation beside its metrics, by name; all ranks call it.
        histograms: what TensorBoard gets with each evaluation besides, by name; all ranks call it.
    """

    def __init__(
        self,
        meter: Meter,
        *,
        every_steps: int = 20,
        file: MetricsLog | None = None,
        beside: Callable[[], Mapping[str, float | None]] = dict,
        histograms: Callable[[], Mapping[str, RowHistogram]] = dict,
    ) -> None:
        self.bar: tqdm | None = None
        """Rank 0's progress bar, while there is one."""
        self._meter, self._every_steps, self._file, self._beside = meter, every_steps, file, beside
        self._histograms = histograms

    def after_step(self, loop: TrainLoop, output: StepOutput) -> bool:
        """Adds the losses to the meter, and reads it when a line is due."""
        step = loop.state.step
        if self.bar is not None:
            self.bar.update()
        self._meter.add(output.losses, labels=labels_of_step(output.batch), rows=len(output.logits))
        if step % self._every_steps == 0 or step == loop.steps:
            values = self._meter.read()
            if self._file is not None:
                self._file.write(step, values)
            losses = {name.removeprefix("train/"): value for name, value in values.items() if "loss/" in name}
            log_rank0(f"step {step}  {self._meter.speed(values)}  {format_values(losses)}")
        return False

    def on_pause(self, loop: TrainLoop) -> None:
        """Copies the files to a run folder in a store, before the checkpoint."""
        if self._file is not None:
            self._file.sync()

    def after_evaluation(self, loop: TrainLoop, metrics: Metrics) -> None:
        """Writes the metrics; speeds count from here."""
        values = evaluation_values(metrics) | dict(self._beside())
        histograms = self._histograms()
        if self._file is not None:
            self._file.write(loop.state.step, values, histograms)
        self._meter.restart()


class ProfileSteps(Callback):
    """Tells a profiler of each step.

    Args:
        profiler: has been entered.
    """

    def __init__(self, profiler: StepProfiler) -> None:
        self._profiler = profiler

    def after_step(self, loop: TrainLoop, output: StepOutput) -> bool:
        """Counts the step."""
        self._profiler.step()
        return False


def evaluation_values(metrics: Metrics) -> dict[str, float | int | None]:
    """Metrics by name, as `valid/like/auc`."""
    return {f"valid/{task}/{name}": v for task, values in to_json(metrics).items() for name, v in values.items()}
