"""The checkpoints of one run: goes on from them, and writes them."""

from functools import partial
from pathlib import Path
from threading import Event

import torch.distributed as dist
from torch import nn
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer

from stem_torchrec.checkpoints.compatibility import check_same_run
from stem_torchrec.checkpoints.folder import Progress, checkpoint_path
from stem_torchrec.checkpoints.resume import candidates, checkpoints_folder, progress_of
from stem_torchrec.checkpoints.saver import CheckpointSaver
from stem_torchrec.checkpoints.state import restore_state, training_state
from stem_torchrec.checkpoints.watch import RunWatch
from stem_torchrec.config import TrainConfig
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import Schema, schema_to_dict
from stem_torchrec.runtime.errors import DamagedError
from stem_torchrec.runtime.hang_detection import collective_timeout
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.training.best_weights import BestWeights
from stem_torchrec.training.loop import Place
from stem_torchrec.training.nonfinite import SkippingPipeline, keep_batch


class RunCheckpoints:
    """Restores a run from a checkpoint and saves it to others; all ranks make the same calls.

    Args:
        config: the run's.
        folder: of the run.
        schema: of its log.
        model: sharded.
        optimizer: of the model.
        pipeline: of the model.
        reader: of the training split.
        best: the best weights of the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        schema: Schema,
        *,
        model: nn.Module,
        optimizer: CombinedOptimizer,
        pipeline: TrainPipelineSparseDist,
        reader: ParquetReader,
        best: BestWeights,
    ) -> None:
        self._model, self._optimizer = model, optimizer
        self._reader, self._best, self._config = reader, best, config
        self._config_says, self._schema_says = to_dict(config), schema_to_dict(schema)
        self._saved_step: int | None = None
        self._run, self._pipeline = folder, pipeline
        self.folder = checkpoints_folder(config.checkpoint, folder)
        self._saver: CheckpointSaver | None = None
        self._watch: RunWatch | None = None

    def restore(self) -> Place:
        """Where the run goes on: after the newest checkpoint that can be read, or at its beginning.

        Raises UserError for a checkpoint of another run, and where there are checkpoints but none can be read.
        """
        paths = from_first_rank(lambda: candidates(self._config.resume, self.folder))
        for path in paths:
            try:
                progress = from_first_rank(partial(progress_of, path))
                check_same_run(
                    path,
                    (progress.config, {**progress.schema, "row_groups": progress.row_groups}),
                    (self._config_says, {**self._schema_says, "row_groups": self._reader.fingerprint}),
                )
                losses = restore_state(
                    self._model,
                    self._optimizer,
                    path,
                    step=progress.step,
                    tasks=len(self._reader.columns.labels),
                    same_ranks=progress.world_size == dist.get_world_size(),
                )
            except DamagedError as error:
                log_rank0(f"note: {error}; trying the checkpoint before")
                continue
            batch_size = progress.config["data"]["batch_size"]
            self._reader.start_epoch(progress.epoch, progress.left, batch_size=batch_size)
            if path == checkpoint_path(self.folder, progress.step):
                self._saved_step = progress.step
            self._best.restore(progress.best, progress.waited)
            if isinstance(self._pipeline, SkippingPipeline):
                self._pipeline.skipped = progress.skipped_batches
            log_rank0(f"going on after step {progress.step} from {path}")
            return Place(progress.step, progress.epoch, self._reader.steps, progress.evaluate, losses)
        if paths:
            raise DamagedError(
                f"no checkpoint in {self.folder} can be read; --resume PATH names another, and a new --output-dir "
                "starts anew."
            )
        return Place()

    def watch(self, ending: Event) -> RunWatch:
        """What pauses the run for checkpoints, and ends it when `ending` is set."""
        settings, timeout = self._config.checkpoint, collective_timeout(self._config.train.timeout)
        self._saver = CheckpointSaver(
            self.folder, keep=settings.keep, max_failures=settings.max_failures, timeout=timeout
        )
        seconds = None if settings.minutes is None else 60 * settings.minutes
        self._watch = RunWatch(
            self._save,
            every=settings.steps,
            seconds=seconds,
            ending=ending,
            keep_batch=None if self._config.train.skip_nonfinite else self._keep_batch,
            timeout=timeout,
        )
        return self._watch

    def counts(self) -> dict[str, int]:
        """What has failed or was skipped since this process started, of batches since the run did."""
        return {
            "count/skipped_batches": self._skipped_batches,
            "count/failed_checkpoints": 0 if self._saver is None else self._saver.failures.total,
            "count/failed_best_weights": self._best.failures.total,
        }

    @property
    def _skipped_batches(self) -> int:
        return self._pipeline.skipped if isinstance(self._pipeline, SkippingPipeline) else 0

    def _keep_batch(self, step: int, batch: Batch) -> Path:
        columns, name = self._reader.columns, f"step-{step:09d}-rank-{dist.get_rank()}"
        return keep_batch(batch, self._run / "nonfinite", columns, name=name)

    def _save(self, place: Place, *, wait: bool) -> None:
        assert self._saver is not None
        assert place.losses is not None
        if place.step == self._saved_step:
            # It was asked to end before it made a step; writing the same again would put the checkpoint at risk.
            log_rank0(f"step {place.step}  the checkpoint that the run went on from holds all")
            return
        left = self._reader.steps if place.left is None else place.left
        progress = Progress(
            step=place.step,
            epoch=place.epoch,
            left=self._reader.left_after(self._reader.steps - left),
            evaluate=place.evaluate,
            best=self._best.stopping.best,
            waited=self._best.stopping.waited,
            world_size=dist.get_world_size(),
            config=self._config_says,
            schema=self._schema_says,
            row_groups=self._reader.fingerprint,
            skipped_batches=self._skipped_batches,
        )
        seconds = self._saver.save(training_state(self._model, self._optimizer, place.losses), progress, wait=wait)
        log_rank0(f"step {place.step}  paused {seconds:.2f} s for a checkpoint")

    def close(self) -> None:
        """Waits for what is being written, and ends the connections of saver and watch."""
        if self._saver is not None and self._watch is not None:
            self._saver.close()
            self._watch.close()
