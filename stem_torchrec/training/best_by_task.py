"""The best weights of each task on its own: those of the evaluation that is the best for this task.

A task's logit may read every group, so what is kept is the whole model at that step, in RUN/best_by_task:

step-000000120/   the weights of an evaluation, once for all tasks that it is the best of
tasks.json        the step of each task, with its metrics

So a run keeps at most T models, and as few as one where the tasks agree on the step.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from stem_torchrec.checkpoints.checksum import weights_checksum
from stem_torchrec.checkpoints.folder import checkpoint_path
from stem_torchrec.checkpoints.saver import Failures
from stem_torchrec.checkpoints.weights import find_weights, save_weights
from stem_torchrec.config.formats import FormatError, with_format, without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.metrics.multi_task import from_json, to_json
from stem_torchrec.runtime.errors import DamagedError, UnwritableError, reason_of
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.paths import remove_tree, write_json
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import AnyPath, path_of
from stem_torchrec.training.early_stopping import EarlyStopping
from stem_torchrec.training.run_folder import BEST_BY_TASK, BEST_WEIGHTS, read_metrics
from stem_torchrec.training.watched_metric import Metrics, WatchedMetric

TASKS_FILE = "tasks.json"
TASKS_FORMAT = 1
"""Format version of tasks.json."""

Waits = Mapping[str, Sequence[float | None]]
"""By task, its best score so far and the evaluations since, as a checkpoint keeps them."""


@dataclass(frozen=True)
class StoredByTask:
    """What tasks.json holds."""

    steps: dict[str, int]
    """By task, the step of its best evaluation."""
    valid: dict[str, dict[str, float | int | None]]
    """By task, its metrics at that step, as `to_json` returns them."""


@dataclass(frozen=True)
class WeightsOfTasks:
    """Weights of a run, and the tasks that are predicted from them."""

    folder: AnyPath
    tasks: tuple[str, ...]


class BestByTask:
    """Writes the weights of each task's best evaluation; all ranks make the same calls.

    Args:
        model: sharded.
        folder: the run folder.
        lock: owns the folder.
        watched: the metric of the run, which is taken of each task alone.
        patience: evaluations without a better one of any task after which to stop; never if None.
        max_failures: evaluations in a row whose weights may fail to be written.

    Raises UserError for a metric that is one task's.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: AnyPath,
        lock: FolderLock,
        watched: WatchedMetric,
        *,
        patience: int | None,
        max_failures: int,
    ) -> None:
        self.stoppings = {task: EarlyStopping(each, patience) for task, each in watched.by_task().items()}
        self.failures = Failures(max_failures, "give another --output-dir")
        self._model, self._run, self._folder, self._lock = model, folder, folder / BEST_BY_TASK, lock
        self._stored = StoredByTask({}, {})

    @property
    def metrics(self) -> Metrics:
        """By task, the metrics of its best evaluation whose weights are on disk; empty before the first."""
        return from_json(self._stored.valid)

    @property
    def stop(self) -> bool:
        """Whether the patience of every task is used up."""
        return all(stopping.stop for stopping in self.stoppings.values())

    @property
    def waits(self) -> Waits:
        """What a checkpoint keeps, for `restore`."""
        return {task: (stopping.best, stopping.waited) for task, stopping in self.stoppings.items()}

    def restore(self, waits: Waits, *, step: int) -> None:
        """Restores what a checkpoint after `step` knows, if the weights are in this folder.

        Raises DamagedError for a tasks.json that is not of this run.
        """
        stored = from_first_rank(lambda: read_by_task(self._run, tuple(self.stoppings)))
        if stored is None:
            return
        # Without a score, the metrics may be of a step that the run makes again.
        known = [task for task, (best, _) in waits.items() if best is not None or stored.steps[task] <= step]
        for task in known:
            best, waited = waits[task]
            self.stoppings[task].best, self.stoppings[task].waited = best, int(waited or 0)
        self._stored = _selected(stored, known)

    def keep(self, step: int, metrics: Metrics) -> None:
        """Writes the weights if the evaluation is the best of some task; if that fails, the earlier ones stay the best.

        Raises UnwritableError where it fails more than `max_failures` times in a row.
        """
        before = self.waits
        better = [task for task, stopping in self.stoppings.items() if stopping.better(metrics)]
        if not better:
            return
        failure, values = None, to_json(metrics)
        stored = StoredByTask(
            self._stored.steps | dict.fromkeys(better, step),
            self._stored.valid | {task: values[task] for task in better},
        )
        try:
            from_first_rank(self._lock.confirm)
            save_weights(self._model, weights_of_step(self._run, step))
            # Written after the weights, so that the steps it names are always on disk.
            from_first_rank(lambda: write_by_task(self._run, stored))
        except UnwritableError as error:
            failure = str(error)
            log_rank0(f"step {step}  {failure}")
            for task in better:
                self.stoppings[task].best = before[task][0]
        self.failures.add(failure)
        if failure is None:
            self._stored = stored
            from_first_rank(self._remove_others)

    def _remove_others(self) -> None:
        """Removes the weights of steps that are no task's best any more."""
        kept = {weights_of_step(self._run, step).name for step in self._stored.steps.values()}
        for path in [*self._folder.iterdir()]:
            if path.name not in kept and path.name != TASKS_FILE:
                remove_tree(path)


def weights_of_step(run: AnyPath, step: int) -> AnyPath:
    """The folder of the weights of a step, RUN/best_by_task/step-000000120."""
    return path_of(checkpoint_path(str(run / BEST_BY_TASK), step))


def read_by_task(run: AnyPath, tasks: Collection[str] = ()) -> StoredByTask | None:
    """What the tasks.json of a run holds; None for a run that keeps no weights by task.

    Args:
        run: the run folder.
        tasks: that the run has, if the caller knows them.

    Raises DamagedError for a file that is not whole or has been changed, FormatError for a newer format.
    """
    path = run / BEST_BY_TASK / TASKS_FILE
    if not path.exists():
        return None
    try:
        stored = from_dict(StoredByTask, without_format(parse_json(path.read_text()), TASKS_FORMAT, str(path)))
        if stored.steps.keys() != stored.valid.keys() or (tasks and set(stored.steps) != set(tasks)):
            raise ValueError(f"it has {', '.join(stored.steps)}")
        from_json(stored.valid)
    except FormatError:
        raise
    # TypeError: a metric is missing or unknown.
    except (ValueError, TypeError) as error:
        raise DamagedError(
            f"{path} is damaged ({reason_of(error)}); delete {path.parent}, and the next evaluation of the run counts "
            "as the best of each task."
        ) from error
    return stored


def write_by_task(run: AnyPath, stored: StoredByTask) -> None:
    """Writes the tasks.json of a run; raises OSError."""
    write_json(run / BEST_BY_TASK / TASKS_FILE, with_format(to_dict(stored), TASKS_FORMAT))


def note_of_mean(run: AnyPath, reader: str) -> str | None:
    """The note for what reads the best weights of a run whose tasks have weights of their own; None for another run.

    `reader` goes on with "those of the best mean", as "this run starts from".
    """
    if not (run / BEST_BY_TASK / TASKS_FILE).exists():
        return None
    return (
        f"the tasks of {run} are predicted from weights of their own, in {BEST_BY_TASK}/; {reader} those of the best "
        f"mean, in {BEST_WEIGHTS}/"
    )


def best_metrics(run: AnyPath, tasks: Sequence[str] = ()) -> Metrics:
    """The metrics of a run's best evaluation, or of each task's best one where the run keeps these; raises as both."""
    stored = read_by_task(run, tasks)
    return from_json(read_metrics(run, tasks).valid if stored is None else stored.valid)


def weights_of_tasks(run: AnyPath, tasks: Sequence[str]) -> tuple[WeightsOfTasks, ...]:
    """The weights that the tasks of a run are predicted from: its best ones, or those of each task's best evaluation.

    Tasks whose best evaluation is the same come together. Raises UserError where the weights do not exist.

    Example::

        weights_of_tasks(Path("runs/a"), ["finish", "like"])
        # (WeightsOfTasks(runs/a/best_by_task/step-000000060, ("finish",)),
        #  WeightsOfTasks(runs/a/best_by_task/step-000000120, ("like",)))
    """
    stored = read_by_task(run)
    if stored is None:
        return (WeightsOfTasks(find_weights(run / BEST_WEIGHTS), tuple(tasks)),)
    steps = sorted({stored.steps[task] for task in tasks})
    return tuple(
        WeightsOfTasks(
            find_weights(weights_of_step(run, step)), tuple(task for task in tasks if stored.steps[task] == step)
        )
        for step in steps
    )


def checksum_of_tasks(run: AnyPath, tasks: Sequence[str]) -> str:
    """The checksum of the weights that the tasks of a run are predicted from, as `weights_checksum` has it of one."""
    parts = weights_of_tasks(run, tasks)
    checksums = [weights_checksum(part.folder) for part in parts]
    if len(parts) == 1:
        return checksums[0]
    named = " ".join(f"{checksum} {','.join(part.tasks)}" for checksum, part in zip(checksums, parts, strict=True))
    return f"sha256:{hashlib.sha256(named.encode()).hexdigest()}"


def _selected(stored: StoredByTask, tasks: Sequence[str]) -> StoredByTask:
    return StoredByTask({task: stored.steps[task] for task in tasks}, {task: stored.valid[task] for task in tasks})
