"""The training loop: steps, evaluation and pauses between slices of the batches, and callbacks around them.

It takes any model under a TorchRec train pipeline whose output is (losses (T,), logits (B, T)).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from stem_torchrec.data.label_counts import LabelCounter
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.hang_detection import set_activity
from stem_torchrec.runtime.progress import format_values, log_rank0, progress_bar
from stem_torchrec.training.callbacks import Callback, KeepBest, TrainingLog, call_after_evaluation, evaluation_values
from stem_torchrec.training.early_stopping import EarlyStopping
from stem_torchrec.training.evaluation import EvaluationCut
from stem_torchrec.training.feed import BatchFeed
from stem_torchrec.training.meter import Meter
from stem_torchrec.training.state import TrainState
from stem_torchrec.training.watched_metric import Metrics


@dataclass(frozen=True)
class StepOutput:
    """What one step returns on this rank."""

    batch: Batch
    """As the reader made it, on the host."""
    losses: Tensor
    """(T,), detached; the mean over the ranks is the mean over all rows with a label."""
    logits: Tensor
    """(B, T), detached."""


class TrainLoop:
    """Steps over as many epochs as they take, with evaluations and callbacks between them.

    All ranks make the same calls.

    Args:
        pipeline: holds the model in training mode and its optimizer.
        batches: this rank's batches of an epoch, counted from 0, at least `steps_per_epoch` of them; of the epoch in
            which the loop starts, those that are left.
        steps: steps of the whole run, with those that `state` counts as made.
        steps_per_epoch: steps of an epoch, the same on every rank; by default one epoch makes all `steps`.
        state: where to start.
        schedule: stepped after each step.
        evaluate: returns the metrics of the validation split.
        eval_every: steps between two evaluations; by default one ends each epoch. Another follows the last step.
        callbacks: their hooks are called in this order.
    """

    def __init__(
        self,
        pipeline: TrainPipelineSparseDist,
        batches: Callable[[int], Iterable[Batch]],
        *,
        steps: int,
        steps_per_epoch: int | None = None,
        state: TrainState | None = None,
        schedule: LRScheduler | None = None,
        evaluate: Callable[[], Metrics] | None = None,
        eval_every: int | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.steps, self.steps_per_epoch = steps, steps_per_epoch or steps
        self.state = state or TrainState(epoch_end=self.steps_per_epoch)
        self.callbacks = list(callbacks)
        self._pipeline, self._schedule = pipeline, schedule
        self._compute_metrics, self._eval_every = evaluate, eval_every
        self._feed = BatchFeed(batches)
        self._slice: Iterator[Batch] = iter(())

    @property
    def pipeline_is_empty(self) -> bool:
        """Whether the pipeline has trained on every batch that it has read; so it is when a slice of batches ends."""
        return not self._feed.waiting

    def train_step(self) -> StepOutput:
        """One step on this rank's next batch; the pipeline copies and distributes the following ones meanwhile.

        Raises UserError when all steps are made, or an epoch has fewer batches than steps.
        """
        if self.pipeline_is_empty:
            self._start_slice()
        set_activity("making a training step")
        losses, logits = self._pipeline.progress(self._slice)
        if self._schedule is not None:
            self._schedule.step()
        self.state.step += 1
        self.state.evaluate = self._evaluation_is_due()
        output = StepOutput(self._feed.waiting.popleft(), losses, logits)
        if any([callback.after_step(self, output) for callback in self.callbacks]):
            self._feed.stop()
        return output

    def evaluate(self) -> Metrics:
        """Evaluates, logs the metrics and calls the hooks; returns the metrics.

        Raises EvaluationCut where the run is asked to end meanwhile; the evaluation stays due then.
        """
        assert self._compute_metrics is not None, "a loop without `evaluate` has nothing to evaluate"
        metrics, state = self._compute_metrics(), self.state
        state.evaluate = False
        ranking = {name: value for name, value in evaluation_values(metrics).items() if name.endswith("auc")}
        epochs = state.epoch + 1 - state.left / self.steps_per_epoch
        log_rank0(f"step {state.step}  epoch {epochs:.2f}  {format_values(ranking)}")
        call_after_evaluation(self.callbacks, self, metrics)
        return metrics

    def run(self) -> None:
        """Makes the steps that are left, or those until a callback stops the run."""
        if self.state.evaluate:
            self._evaluate_or_pause()
        while self.state.step < self.steps and not self.state.stopped:
            self.train_step()
            if self.pipeline_is_empty:
                self._pause()

    def _start_slice(self) -> None:
        """Lets the pipeline read up to the next step at which it must be empty."""
        state = self.state
        if state.step >= self.steps:
            raise UserError(f"all {self.steps} steps of the run are made; give more steps or epochs.")
        if state.step == state.epoch_end:
            state.epoch, state.epoch_end = state.epoch + 1, state.epoch_end + self.steps_per_epoch
            for callback in self.callbacks:
                callback.before_epoch(self)
        intervals = [self._eval_every, *(callback.every for callback in self.callbacks)]
        pauses = [state.step + every - state.step % every for every in intervals if every]
        self._slice = self._feed.slice(state.epoch, min(state.epoch_end, self.steps, *pauses) - state.step)

    def _evaluation_is_due(self) -> bool:
        step, end = self.state.step, min(self.state.epoch_end, self.steps)
        if self._compute_metrics is None:
            return False
        return step == self.steps or (step == end if self._eval_every is None else step % self._eval_every == 0)

    def _evaluate_or_pause(self) -> None:
        try:
            self.evaluate()
        except EvaluationCut:
            # Whoever asked for the end of the run ends it here, with a checkpoint.
            self._call_on_pause()
            raise

    def _pause(self) -> None:
        if self.state.evaluate:
            self._evaluate_or_pause()
        if not self.state.stopped:
            self._call_on_pause()

    def _call_on_pause(self) -> None:
        for callback in self.callbacks:
            callback.on_pause(self)


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
    callbacks: Sequence[Callback] = (),
) -> None:
    """Trains for `steps` steps, or until early stopping: the loop alone, for a model and batches of your own.

    It counts the labels of TorchRec's Batches over all ranks for the loss of a MultiTaskTrain (see `LabelCounter`).
    Batches of other classes are left as they are.

    Args:
        pipeline: see TrainLoop, as for the other arguments that are not listed here.
        tasks: names of the tasks, in the order of the losses.
        stopping: decides which evaluation is the best so far and when to stop.
        keep: called with the step and the metrics of each evaluation that is the best so far; of every evaluation
            without `stopping`.
        log_every: steps between two lines of the log.
        callbacks: hooks of yours, called after the log's.

    Example::

        fit(pipeline, lambda epoch: loader, tasks=["click"], steps=1000, steps_per_epoch=500)
    """
    log = TrainingLog(Meter(tasks), every_steps=log_every)
    best = KeepBest(keep or (lambda step, metrics: None), stopping)
    counter = LabelCounter()
    loop = TrainLoop(
        pipeline,
        lambda epoch: counter.counted(batches(epoch)),
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        schedule=schedule,
        evaluate=evaluate,
        eval_every=eval_every,
        callbacks=[best, log, *callbacks],
    )
    with progress_bar(steps, "step") as log.bar:
        loop.run()
    counter.close()
