"""What a bundle takes of a run: one model, or one for each set of tasks with weights of their own.

With `--train.best-by-task` each task has the weights of its own best evaluation, and reads all groups of that model. So
such a bundle has up to T models, each cut down to its tasks, and takes up to T times the memory and the time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stem_torchrec.config import TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.serving.manifest import TablePrecision
from stem_torchrec.serving.served_model import ServedModel, ServedTogether
from stem_torchrec.serving.table_file import create_tables
from stem_torchrec.serving.trained_model import TrainedModel, open_trained_model
from stem_torchrec.training.best_by_task import checksum_of_tasks, weights_of_tasks


@dataclass(frozen=True)
class TrainedRun:
    """The models of a run for some of its tasks, whose tables are still on disk."""

    tasks: tuple[str, ...]
    """In the order of the probabilities."""
    models: tuple[TrainedModel, ...]
    parts: tuple[tuple[str, ...], ...]
    """The tasks of each model."""

    @cached_property
    def served(self) -> ServedModel | ServedTogether:
        """What the program is exported from."""
        models = [model.served for model in self.models]
        return models[0] if len(models) == 1 else ServedTogether(models, self.parts, self.tasks)

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables that are served."""
        return sum(model.table_bytes for model in self.models)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the other weights that are served."""
        return sum(model.dense_bytes for model in self.models)

    def write_tables(self, file: Path) -> None:
        """Writes tables.safetensors."""
        names = [entry.name for entry in self.served.tables]
        tables = create_tables(file, self.served.tables, self.models[0].precision)
        for model in self.models:
            own, names = names[: len(model.served.tables)], names[len(model.served.tables) :]
            model.fill({entry.name: tables[name] for entry, name in zip(model.served.tables, own, strict=True)})


def open_trained_run(
    config: TrainConfig, columns: Columns, run: AnyPath, *, tasks: Sequence[str], precision: TablePrecision
) -> TrainedRun:
    """The models of a run for some of its tasks; see `open_trained_model`.

    Args:
        config: of the run.
        columns: that the run reads.
        run: its folder.
        tasks: to be served.
        precision: of the tables that are written.
    """
    parts = weights_of_tasks(run, tasks)
    models = [open_trained_model(config, columns, part.folder, tasks=part.tasks, precision=precision) for part in parts]
    return TrainedRun(tuple(tasks), tuple(models), tuple(part.tasks for part in parts))


@contextmanager
def unchanged_weights(run: AnyPath, tasks: Sequence[str]) -> Iterator[str]:
    """The checksum of the weights that the tasks of a run are predicted from, the same at the end of the block.

    Reads all of them before and after it: a training that still runs replaces its best weights.

    Raises UserError if the run has no weights, or others at the end.
    """
    before = checksum_of_tasks(run, tasks)
    yield before
    if checksum_of_tasks(run, tasks) != before:
        raise UserError(f"{run} got other weights meanwhile; export the run again when its training has ended.")
