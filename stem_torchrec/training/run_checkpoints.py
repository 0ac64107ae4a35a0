"""The checkpoints of one run: resumes it from the newest, and writes more as a callback of its loop."""

from collections.abc import Mapping
from threading import Event

import torch.distributed as dist
from torch import nn
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer

from stem_torchrec.checkpoints.compatibility import check_same_rows, check_same_run, entries_left_out
from stem_torchrec.checkpoints.folder import Progress, checkpoint_path
from stem_torchrec.checkpoints.resume import candidates, checkpoints_folder, progress_of
from stem_torchrec.checkpoints.saver import CheckpointSaver
from stem_torchrec.checkpoints.state import restore_state, training_state
from stem_torchrec.checkpoints.watch import RunWatch
from stem_torchrec.config import TrainConfig
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.data.footers import LAYOUT
from stem_torchrec.data.schema import schema_to_dict
from stem_torchrec.models.table import all_options
from stem_torchrec.runtime.errors import DamagedError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.hang_detection import collective_timeout
from stem_torchrec.runtime.paths import check_writable
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import AnyPath, path_of
from stem_torchrec.starting.record import StartRecord
from stem_torchrec.tables import set_steps
from stem_torchrec.training.best_weights import BestWeights
from stem_torchrec.training.callbacks import Callback
from stem_torchrec.training.chosen_deltas import chosen_deltas
from stem_torchrec.training.loop import StepOutput, TrainLoop
from stem_torchrec.training.meter import Meter
from stem_torchrec.training.nonfinite import SkippingPipeline, keep_batch
from stem_torchrec.training.run_data import RunData
from stem_torchrec.training.state import TrainState
from stem_torchrec.training.watched_metric import Metrics


class RunCheckpoints(Callback):
    """Restores a run from a checkpoint and saves it to others; all ranks make the same calls.

    Args:
        config: of the run.
        folder: of the run.
        lock: owns the folder, and that of the checkpoints.
        data: of the run.
        model: sharded.
        optimizer: of the model.
        pipeline: of the model.
        best: the best weights of the run.
        meter: of its log.
        start: what the run began with.

    Raises UserError for deltas that the run may not go on with; see RunDeltas.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: AnyPath,
        lock: FolderLock,
        data: RunData,
        *,
        model: nn.Module,
        optimizer: CombinedOptimizer,
        pipeline: TrainPipelineSparseDist,
        best: BestWeights,
        meter: Meter,
        start: StartRecord,
    ) -> None:
        self.folder = checkpoints_folder(config.checkpoint, folder)
        self.every = config.checkpoint.steps
        self._saves = self.every is not None or config.checkpoint.minutes is not None
        self._config, self._run_folder, self._lock, self._data = config, folder, lock, data
        self._config_fields, self._schema_fields = to_dict(config), schema_to_dict(data.schema)
        self._model, self._optimizer, self._pipeline = model, optimizer, pipeline
        self._best, self._meter, self._start_fields = best, meter, start.for_checkpoint()
        self.deltas = chosen_deltas(config, data.columns, start, model=model, meter=meter, check=self._check)
        """Whose rows are in the checkpoints."""
        self._saved_step: int | None = None
        self._saver: CheckpointSaver | None = None
        self._watch: RunWatch | None = None

    def restore(self) -> TrainState:
        """Where the run starts: after the newest checkpoint that can be read, or at its beginning.

        Raises UserError for a checkpoint of another run, and where there are checkpoints but none can be read.
        """
        paths = from_first_rank(lambda: candidates(self._config.resume, self.folder))
        for path in paths:
            try:
                return self._restore_from(path)
            except DamagedError as error:
                log_rank0(f"note: {error}; trying the checkpoint before")
        if paths:
            raise DamagedError(
                f"no checkpoint in {self.folder} can be read; name another with --resume PATH, or start anew in a new "
                "--output-dir."
            )
        return TrainState(epoch_end=self._data.train.steps)

    def start(self, ending: Event) -> None:
        """Begins to watch for what pauses the run: time, a signal that sets `ending`, losses that are not finite.

        Raises OSError where the folder that `--checkpoint.folder` names cannot be written.
        """
        if self._config.checkpoint.folder is not None:
            from_first_rank(lambda: check_writable(path_of(self.folder)))
        settings, timeout = self._config.checkpoint, collective_timeout(self._config.train.timeout)
        self._saver = CheckpointSaver(
            self.folder, keep=settings.keep, max_failures=settings.max_failures, timeout=timeout
        )
        self._watch = RunWatch(
            self._save, seconds=None if settings.minutes is None else 60 * settings.minutes, ending=ending,
            keep_batch=None if self._config.train.skip_nonfinite else self._keep_batch,
            lost=lambda: self._lock.lost, timeout=timeout, delta_is_due=self.deltas.is_due,
        )  # fmt: skip

    @property
    def watch(self) -> RunWatch:
        """Knows on all ranks what any rank asks for."""
        assert self._watch is not None, "start() comes first"
        return self._watch

    def after_step(self, loop: TrainLoop, output: StepOutput) -> bool:
        """Whether a checkpoint or a delta is due by time, a rank has been asked to end, or a loss is not finite."""
        pause = self.watch.should_pause(loop.state.step, output.batch, output.losses)
        self.deltas.requested |= self.watch.delta_is_requested
        return pause

    def on_pause(self, loop: TrainLoop) -> None:
        """Saves where a checkpoint is due; raises Interrupted after it where the run has been asked to end."""
        self.watch.check_finite()
        if self.watch.pause_is_requested or (self.every and loop.state.step % self.every == 0):
            self._meter.pause(lambda: self.watch.on_pause(loop.state))

    def after_evaluation(self, loop: TrainLoop, metrics: Metrics) -> None:
        """Saves the last state of a run that an earlier callback has stopped, which the next run may start from."""
        if loop.state.stopped and self._saves and loop.state.step != self._saved_step:
            self._save(loop.state, wait=True)

    def save(self, state: TrainState) -> None:
        """Saves now, and waits until the checkpoint is written. The pipeline may hold batches, which do not count."""
        self.watch.check_finite()
        # The caller may have changed the weights since the checkpoint that the run resumed from.
        self._saved_step = None
        self._save(state, wait=True)

    def save_before_evaluation(self, state: TrainState, *, last: bool) -> None:
        """Saves before the first and the last evaluation of a run, which may meet rows or files that end it.

        A run without checkpoints only keeps its weights, before the first evaluation.
        """
        first = not self._best.metrics
        if not self._saves:
            if first:
                self._best.keep_unscored(state.step)
        elif first or last:
            self._save(state, wait=True)

    def counts(self) -> Mapping[str, int]:
        """Batches skipped since the run began, and writes that failed since this process started."""
        return {
            "count/skipped_batches": self._skipped_batches,
            "count/failed_checkpoints": 0 if self._saver is None else self._saver.failures.total,
            "count/failed_best_weights": self._best.failures.total,
            "count/failed_deltas": self.deltas.failed,
        }

    def close(self) -> None:
        """Waits for the checkpoint and the delta that are being written, and ends their connections."""
        if self._saver is not None:
            self._saver.close()
            self.watch.close()
            self.deltas.close()
            self._saver = self._watch = None

    @property
    def _skipped_batches(self) -> int:
        return self._pipeline.skipped if isinstance(self._pipeline, SkippingPipeline) else 0

    def _restore_from(self, path: str) -> TrainState:
        progress = from_first_rank(lambda: progress_of(path, all_options()))
        check_same_run(path, (progress.config, progress.schema), (self._config_fields, self._schema_fields))
        check_same_rows(path, progress.rows, self._data.contents)
        if not progress.contents:
            log_rank0(
                f"note: an earlier version wrote {path}, without the values of the log's rows; only their files and "
                "row groups are compared"
            )
        if left_out := entries_left_out(progress.rows, self._data.contents):
            log_rank0(f"note: the files of the log do not tell {left_out} any more; only the rest is compared")
        meter = restore_state(
            self._model, self._optimizer, path, step=progress.step, tasks=len(self._data.columns.labels),
            same_ranks=progress.world_size == dist.get_world_size(),
        )  # fmt: skip
        # Those of the run that this one started from count on.
        set_steps(self._model, self._optimizer, progress.step + progress.start.get("table_steps", 0))
        reader = self._data.train
        reader.start_epoch(progress.epoch, progress.left, batch_size=progress.config["data"]["batch_size"])
        if path == checkpoint_path(self.folder, progress.step):
            self._saved_step = progress.step
        self._best.restore(progress)
        if isinstance(self._pipeline, SkippingPipeline):
            self._pipeline.skipped = progress.skipped_batches
        if meter is not None:
            self._meter.restore(meter)
        self.deltas.restore(path, progress.step)
        log_rank0(f"resuming after step {progress.step} from {path}")
        # On another number of ranks the rest of the epoch may take another number of steps.
        end, stopped = progress.step + reader.steps, self._best.stop
        return TrainState(progress.step, progress.epoch, end, progress.evaluate, stopped)

    def _check(self) -> None:
        self.watch.check_finite()
        from_first_rank(self._lock.confirm)

    def _keep_batch(self, step: int, batch: Batch) -> AnyPath:
        columns, name = self._data.columns, f"step-{step:09d}-rank-{dist.get_rank()}"
        return keep_batch(batch, self._run_folder / "nonfinite", columns, name=name)

    def _save(self, state: TrainState, *, wait: bool) -> None:
        assert self._saver is not None, "start() comes first"
        from_first_rank(self._lock.confirm)
        if wait:
            self.deltas.wait()
        if state.step == self._saved_step:
            # Writing the same again would put the checkpoint at risk.
            log_rank0(f"step {state.step}  the checkpoint of this step is written already")
            return
        reader, stopping = self._data.train, self._best.stopping
        progress = Progress(
            step=state.step, epoch=state.epoch, left=reader.left_after(reader.steps - state.left),
            evaluate=state.evaluate, best=stopping.best, waited=stopping.waited, world_size=dist.get_world_size(),
            config=self._config_fields, schema=self._schema_fields, row_groups=self._data.contents["train"][LAYOUT],
            skipped_batches=self._skipped_batches, contents=self._data.contents, start=self._start_fields,
            by_task=self._best.by_task.waits if self._best.by_task else {}, plateaus=stopping.plateaus,
        )  # fmt: skip
        state_now = training_state(self._model, self._optimizer, self._meter.state(), self.deltas.state())
        seconds = self._saver.save(state_now, progress, wait=wait)
        if wait and not self._saver.failures.in_a_row:
            self._saved_step = state.step
        log_rank0(f"step {state.step}  paused {seconds:.2f} s for a checkpoint")
