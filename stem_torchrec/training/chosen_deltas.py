"""The deltas of a run, or none. What writes them needs safetensors, which is imported for a run that ships some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchrec.distributed import DistributedModelParallel

from stem_torchrec.checkpoints.storage import State
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.starting.record import StartRecord
from stem_torchrec.training.beginning import Beginning
from stem_torchrec.training.callbacks import Callback

if TYPE_CHECKING:
    from stem_torchrec.deltas.began import Began
    from stem_torchrec.training.run_deltas import RunDeltas


class NoDeltas(Callback):
    """In place of RunDeltas, for a run that ships none."""

    failed = 0
    requested = False

    def is_due(self) -> bool:
        """Whether a delta is due by time."""
        return False

    def state(self) -> State:
        """Nothing for a checkpoint."""
        return {}

    def restore(self, path: str, step: int) -> None:
        """Does nothing."""

    def ship_last(self, step: int) -> None:
        """Does nothing."""

    def wait(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def chosen_deltas(config: TrainConfig, columns: Columns, start: StartRecord, **options: Any) -> RunDeltas | NoDeltas:
    """The deltas of a run, if it ships some; see RunDeltas for the other arguments.

    Args:
        config: of the run.
        columns: that it reads.
        start: of the run in its folder.
        **options: for RunDeltas.
    """
    if not config.delta.is_on:
        return NoDeltas()
    from stem_torchrec.training.run_deltas import RunDeltas

    return RunDeltas(config, path_of(start.run), columns, run_id=start.id, began=_began(start), **options)


def check_deltas(config: TrainConfig, beginning: Beginning) -> None:
    """Raises UserError on all ranks for deltas that the run may not go on with, before it makes a folder."""
    # A folder that the run makes anew has no deltas.
    if not config.delta.is_on or (config.delta.out is None and config.output_dir is None):
        return
    from stem_torchrec.deltas.joining import check_chain
    from stem_torchrec.deltas.manifest import deltas_folder, newest_delta

    def check() -> None:
        start = beginning.record
        if config.output_dir is not None:
            start = beginning.record_in(path_of(config.output_dir), config)
        last = newest_delta(deltas_folder(config.delta, path_of(start.run)))
        check_chain(last, config.delta, run=start.run, run_id=start.id, began=_began(start))

    from_first_rank(check)


def check_rows(config: TrainConfig, model: DistributedModelParallel) -> None:
    """Raises UserError for a precision in which the rows of the sharded tables cannot be shipped."""
    if not config.delta.is_on:
        return
    from stem_torchrec.training.table_changes import check_precision

    check_precision(model, config.delta)


def _began(start: StartRecord) -> Began | None:
    """What a run began with; None for fresh weights."""
    from stem_torchrec.deltas.began import Began

    if not start.parents or (run := start.parents[0].run) is None:
        return None
    return Began(run, start.parents[0].id, start.parents[0].step, start.same_rows)
