"""Converts a run to the other layout of its tables: a new run folder whose predictions are the same bits."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from stem_torchrec.checkpoints.weights import find_weights, load_weights, save_weights
from stem_torchrec.config import Layout, TrainConfig
from stem_torchrec.config.files import dump_config
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import load_schema, save_schema
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.owner_file import read_owner
from stem_torchrec.runtime.path_options import InputFolder, OutputFolder
from stem_torchrec.runtime.paths import remove_tree
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import AnyPath, path_of
from stem_torchrec.starting.record import read_start, write_start
from stem_torchrec.training.assembly import build_sharded_model, for_weights_only
from stem_torchrec.training.best_by_task import read_by_task, weights_of_step, write_by_task
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.evaluation_outputs import check_apart
from stem_torchrec.training.run_folder import BEST_WEIGHTS, CONFIG_FILE, METRICS_FILE, read_metrics, write_metrics
from stem_torchrec.training.sparse_optimizers import SPARSE_OPTIMIZERS


@dataclass(frozen=True)
class ConvertConfig:
    """Which run to convert, and where to."""

    run: Annotated[InputFolder, tyro.conf.arg(aliases=["--run-dir"])] = ""
    """The run folder that training wrote. Under torchrun use --run-dir, as torchrun takes --run for its own."""
    layout: Layout = "packed"
    """The layout of the new run."""
    out: OutputFolder = ""
    """The new run folder."""
    take_over: bool = False
    """Takes the new folder from another conversion that runs."""


def convert_run(config: ConvertConfig, process: Process) -> None:
    """Writes the run folder `config.out`: config.yaml, schema.json, start.json, metrics.json and all best weights.

    All ranks of the process group call it; the planner spreads the tables over them. Raises UserError, without making
    the new folder, if the run or its weights are missing or damaged, or the new folder exists.
    """
    if not config.run or not config.out:
        raise UserError(
            "--run or --out is missing; give the run to convert and the new folder: --run RUN --out NEWRUN."
        )
    check_apart(config.out, config.run, "--out")
    run, folder = path_of(config.run), path_of(config.out)
    trained = load_config(str(run / CONFIG_FILE))
    if trained.model.layout == config.layout:
        raise UserError(f"{run} is {config.layout} already; give the other --layout.")
    weights, schema = find_weights(run / BEST_WEIGHTS), load_schema(str(run))
    columns = Columns.select(schema, features=trained.data.features, labels=trained.data.labels)
    start = read_start(run)
    metrics = read_metrics(run, columns.labels) if (run / METRICS_FILE).exists() else None
    by_task = read_by_task(run, columns.labels)
    steps = sorted(set(by_task.steps.values())) if by_task is not None else []
    of_steps = {step: find_weights(weights_of_step(run, step)) for step in steps}
    converted = _in_layout(trained, config.layout)
    lock = FolderLock(take_over=config.take_over)
    unfinished = from_first_rank(lambda: _make_folder(folder, lock))
    try:
        model, _ = build_sharded_model(for_weights_only(converted), columns, process, trains=False)
        for step, of_step in of_steps.items():
            load_weights(model, of_step)
            save_weights(model, weights_of_step(unfinished, step))
        load_weights(model, weights)
        save_weights(model, unfinished / BEST_WEIGHTS)

        def finish() -> None:
            lock.confirm()
            try:
                save_schema(schema, str(unfinished))
                if start is not None:
                    write_start(unfinished, replace(start, run=str(folder), checkpoints=None))
                if metrics is not None:
                    write_metrics(unfinished / METRICS_FILE, metrics)
                if by_task is not None:
                    write_by_task(unfinished, by_task)
                # A run without a configuration is none, so this file is the last of a run in a store.
                (unfinished / CONFIG_FILE).write_text(dump_config(converted))
                lock.release()
                if isinstance(unfinished, Path) and isinstance(folder, Path):
                    unfinished.rename(folder)
            except OSError as error:
                raise UserError(f"{folder} cannot be written ({error.strerror}); give another --out.") from error

        from_first_rank(finish)
    except BaseException:
        if process.is_first and not lock.lost:
            remove_tree(unfinished)
        raise
    log_rank0(f"\n{folder} is {run} in the {config.layout} layout")
    for note in _notes(trained, converted):
        log_rank0(f"note: {note}")


def _in_layout(config: TrainConfig, layout: Layout) -> TrainConfig:
    """The configuration in a layout, without the rules and the plan, which name tables of the other layout."""
    return replace(
        config,
        model=replace(config.model, layout=layout),
        sharding=replace(config.sharding, rules=(), plan=None),
    )


def _make_folder(folder: AnyPath, lock: FolderLock) -> AnyPath:
    """Takes the folder that is renamed to `folder` once it is complete; in a store, which cannot rename, itself.

    What a conversion that was killed has left is removed.
    """
    unfinished = folder.with_name(folder.name + ".new") if isinstance(folder, Path) else folder
    lock.check(str(unfinished), other="--out")
    if read_owner(str(unfinished)) is not None:
        remove_tree(unfinished)
    for each in (folder, unfinished):
        if each.exists():
            raise UserError(f"{each} exists already; give another --out, or delete it.")
    try:
        lock.take(str(unfinished), other="--out")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); give another --out.") from error
    return unfinished


def _notes(trained: TrainConfig, converted: TrainConfig) -> list[str]:
    """What the new run does not take over, and what to change before it is trained."""
    notes = []
    if trained.sharding != converted.sharding:
        notes.append("--sharding.rules and .plan name tables of the other layout and are left out of config.yaml")
    if converted.model.layout == "packed" and SPARSE_OPTIMIZERS[trained.sparse.name].per_row:
        notes.append(
            f"to train the new run, choose --sparse.name adagrad or sgd: {trained.sparse.name} couples the elements of "
            "a row, and its state cannot be packed"
        )
    elif converted.model.layout == "packed" and (trained.sparse.group_learning_rates or trained.train.rate_factors):
        notes.append("to train the new run, give all groups one learning rate: a packed table has only one")
    return notes
