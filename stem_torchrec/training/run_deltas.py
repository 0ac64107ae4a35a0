"""The deltas of one run: records which rows its steps change, and ships them as a callback of its loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.distributed import DistributedModelParallel

from stem_torchrec.checkpoints.rank_tensors import rank_tensors
from stem_torchrec.checkpoints.storage import State
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.label_counts import weights_of
from stem_torchrec.deltas.began import Began
from stem_torchrec.deltas.joining import chain_number, check_chain, rows_after, tables_that_differ
from stem_torchrec.deltas.manifest import deltas_folder
from stem_torchrec.deltas.shard_rows import ModelTensors
from stem_torchrec.deltas.touched import TouchedRows
from stem_torchrec.deltas.writer import Changes, DeltaWriter
from stem_torchrec.runtime.errors import UnwritableError
from stem_torchrec.runtime.hang_detection import collective_timeout, set_activity
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import AnyPath, path_of
from stem_torchrec.training.callbacks import Callback
from stem_torchrec.training.meter import Meter
from stem_torchrec.training.table_changes import bits_by_table, moves_unlabeled, tables_that_move
from stem_torchrec.training.watched_metric import Metrics

if TYPE_CHECKING:
    from stem_torchrec.training.loop import StepOutput, TrainLoop

_PART = "deltas"
"""What checkpoints call it."""
_NONE = -1
"""In place of a number: the next delta has all rows."""


class RunDeltas(Callback):
    """Ships what the steps of a run change; all ranks make the same calls.

    Args:
        config: of the run.
        folder: of the run, absolute.
        columns: that it reads.
        run_id: of the run.
        model: sharded.
        meter: of its log, which leaves out pauses.
        check: all ranks call it before each delta; raises an error on all of them if none may be written, as where a
            loss was not finite or another process has taken the folders over.
        began: the state of another run that it began with.

    Raises UserError for the deltas of another run in its folder. `check_precision` comes first.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: AnyPath,
        columns: Columns,
        *,
        run_id: str,
        model: DistributedModelParallel,
        meter: Meter,
        check: Callable[[], None],
        began: Began | None = None,
    ) -> None:
        self.every = config.delta.steps
        self._model, self._meter, self._check = model, meter, check
        self._touched = TouchedRows(
            {name: feature.num_embeddings for name, feature in columns.sparse.items()},
            len(columns.labels),
            every_lookup=moves_unlabeled(config.sparse),
        )
        self._taken: dict[str, NDArray] = {}
        """What the delta that is being written has, of this rank."""
        self._bits = bits_by_table(model, self._touched, len(columns.labels))
        self._whole = tables_that_move(model, config.sparse)
        self._run_id, self._folder = run_id, deltas_folder(config.delta, folder)
        log = None if config.data.path is None else path_of(config.data.path)
        self._writer = DeltaWriter(
            config.delta, self._folder, folder, log, run_id=run_id,
            max_failures=config.checkpoint.max_failures, timeout=collective_timeout(config.train.timeout),
        )  # fmt: skip
        self._fresh_tables = config.train.fresh_tables
        self._full = True
        """Whether the next delta has all rows; the first one of a run may go on with another's."""
        self._new_tables: set[str] = set()
        """Tables of which the next delta has all rows."""
        self._shipped: int | None = None
        """The step of the newest delta, if this process knows it to have the state of that step."""
        run, last = str(folder), self._writer.last
        if from_first_rank(lambda: check_chain(last, config.delta, run=run, run_id=run_id, began=began)):
            self._go_on(began)
        self._seconds = None if config.delta.minutes is None else 60 * config.delta.minutes
        self._last_time = time.monotonic()
        self.requested = False
        """Whether some rank has asked for a delta since the last one, as it is due by time; the same on all ranks."""

    @property
    def failed(self) -> int:
        """Deltas that could not be written since this process started."""
        return self._writer.failures.total

    def is_due(self) -> bool:
        """Whether a delta is due by this rank's clock."""
        return self._seconds is not None and time.monotonic() - self._last_time >= self._seconds

    def after_step(self, loop: TrainLoop, output: StepOutput) -> bool:
        """Records the rows of the step."""
        self._touched.add(output.batch.sparse_features, output.batch.labels, weights_of(output.batch))
        return False

    def before_epoch(self, loop: TrainLoop) -> None:
        """Ships all rows next where the tables begin anew."""
        self._full |= self._fresh_tables

    def on_pause(self, loop: TrainLoop) -> None:
        """Ships a delta where one is due, and after the last step."""
        step = loop.state.step
        if self.requested or (self.every and step % self.every == 0) or step == loop.steps:
            self._pause(step, ends=step == loop.steps)

    def after_evaluation(self, loop: TrainLoop, metrics: Metrics) -> None:
        """Ships the last state of a run that an earlier callback has stopped."""
        if loop.state.stopped:
            self._pause(loop.state.step, ends=True)

    def ship(self, step: int, *, ends: bool = False) -> None:
        """Copies what has changed and starts to write it, unless the newest delta has this state.

        A run that was resumed, or began again before its first checkpoint, makes steps again: it ships none before the
        newest delta's, so that no copy goes back, unless it ends there, as it may do on more ranks.

        Raises UnwritableError if too many deltas in a row could not be written.
        """
        set_activity("waiting for the previous delta to be written")
        self.wait()
        if step == self._shipped:
            return
        if not ends and step < self._own_step:
            log_rank0(f"step {step}  no delta: the newest one is of step {self._own_step}")
            return
        self._check()
        set_activity("copying what has changed for a delta")
        full, tensors = self._full or self._writer.kept.needs_all_rows(self._writer.number + 1), self._tensors()
        self._taken = self._touched.take()
        rows = (
            tensors.all_rows()
            if full
            else tensors.changed_rows(self._taken, self._writer.group, whole=self._new_tables)
        )
        self._writer.start(Changes(step, full, rows, tensors.dense(), tensors.tables, tensors.prefix))
        self._full, self._shipped = False, step

    def ship_last(self, step: int) -> None:
        """Ships the last state of a run if no delta has it, and waits for it; tries once more where that fails.

        Raises UnwritableError if it cannot be written.
        """
        for _ in range(2):
            self.ship(step, ends=True)
            self.wait()
            if self._shipped == step:
                return
        raise UnwritableError(
            f"the last delta could not be written to {self._folder}; make room, and the same command writes it."
        )

    def wait(self) -> None:
        """Waits for the delta that is being written; what a failed one would have had, the next one has."""
        was_all = self._writer.is_writing_all
        if self._writer.wait():
            self._touched.give_back(self._taken)
            self._full |= was_all
            self._shipped = None
        elif self._taken:
            self._new_tables = set()
        self._taken = {}

    def state(self) -> State:
        """This rank's part of a checkpoint: the rows that no complete delta has, and which is the newest."""
        number = self._writer.number
        if self._full or self._writer.is_writing_all or self._new_tables:
            number = _NONE
        arrays = self._touched.arrays
        touched = {name: arrays[name] | self._taken[name] if self._taken else arrays[name] for name in arrays}
        since = torch.tensor([number, chain_number(self._writer.chain)])
        rows = {name: torch.from_numpy(array.view(np.uint8)) for name, array in touched.items()}
        return {_PART: {"since": since, "touched": rows}}

    def restore(self, path: str, step: int) -> None:
        """Takes what a checkpoint after `step` steps has of `state`, saved on any number of ranks."""
        parts, last = list(rank_tensors(path, _PART)), self._writer.last

        number, chain = parts[0]["since"].tolist() if parts else (_NONE, 0)
        rows = from_first_rank(lambda: None if last is None else rows_after(last, number=number, chain=chain))
        self._full, self._shipped = rows is None, None
        if last is None or rows is None:
            if last is not None:
                log_rank0(f"note: it is not known what has changed since {last.folder}; the next delta has all rows")
            return
        # What is known of rows that another run's state lacks is in the checkpoint.
        self._touched.take()
        for feature, numbers in rows.items():
            self._touched.add_rows(feature, numbers)
        for part in parts:
            names = {name.removeprefix("touched."): value.numpy() for name, value in part.items() if name != "since"}
            self._touched.give_back(
                {name: value.view(self._touched.arrays[name].dtype) for name, value in names.items()}
            )
        if step == last.manifest.step and not any(array.any() for array in self._touched.arrays.values()):
            self._shipped = step

    def close(self) -> None:
        """Waits for the delta that is being written, and closes the connections."""
        self.wait()
        self._writer.close()

    @property
    def _own_step(self) -> int:
        """The step of the newest delta if it is of this run, else 0."""
        last = self._writer.last
        return last.manifest.step if last is not None and last.manifest.run_id == self._run_id else 0

    def _go_on(self, began: Began | None) -> None:
        """Goes on with the deltas of the run that this one began with: their newest is the state of its first step."""
        assert began is not None
        assert self._writer.last is not None
        self._full = False
        self._new_tables = tables_that_differ(self._writer.last, self._tensors().tables)
        for feature, array in self._touched.arrays.items():
            self._touched.add_rows(feature, began.fresh_rows(feature, len(array)))

    def _pause(self, step: int, *, ends: bool) -> None:
        seconds = self._meter.pause(lambda: self.ship(step, ends=ends))
        log_rank0(f"step {step}  paused {seconds:.2f} s for a delta")
        self.requested, self._last_time = False, time.monotonic()

    def _tensors(self) -> ModelTensors:
        return ModelTensors(self._model.state_dict(), self._bits, self._whole)
