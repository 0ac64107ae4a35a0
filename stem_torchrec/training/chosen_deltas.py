"""The deltas of a run, or none. What writes them needs safetensors, which is imported for a run that ships some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stem_torchrec.checkpoints.storage import State
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.training.callbacks import Callback

if TYPE_CHECKING:
    from stem_torchrec.training.run_deltas import RunDeltas


class NoDeltas(Callback):
    """In place of RunDeltas, for a run that ships none."""

    failed = 0

    def state(self) -> State:
        """Nothing for a checkpoint."""
        return {}

    def restore(self, path: str, step: int) -> None:
        """Does nothing."""

    def wait(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def chosen_deltas(config: TrainConfig, folder: AnyPath, columns: Columns, **options: Any) -> RunDeltas | NoDeltas:
    """The deltas of a run, if it ships some; see RunDeltas for the arguments."""
    if not config.delta.is_on:
        return NoDeltas()
    from stem_torchrec.training.run_deltas import RunDeltas

    return RunDeltas(config, folder, columns, **options)
