"""What a new run starts from: a run, a checkpoint or weights, local or in a store."""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from stem_torchrec.checkpoints.folder import PROGRESS_FILE, Progress, checkpoint_path, complete_steps
from stem_torchrec.checkpoints.resume import checkpoints_folder, progress_of
from stem_torchrec.checkpoints.weights import BEST_WEIGHTS, find_weights, read_metadata
from stem_torchrec.config import CheckpointConfig, TrainConfig
from stem_torchrec.config.files import CONFIG_FILE, config_from_dict, read_config
from stem_torchrec.config.serialization import from_dict
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import Schema, load_schema
from stem_torchrec.data.spans import count
from stem_torchrec.models.table import all_options
from stem_torchrec.runtime.errors import DamagedError, UserError
from stem_torchrec.runtime.owner_file import read_owner
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import AnyPath, path_of
from stem_torchrec.starting.record import StartRecord, read_start, start_of

BEST = ":best"
"""Behind a run: its best weights."""


@dataclass(frozen=True)
class StartSource:
    """A folder of weights, with optimizer states if it is a checkpoint, and what is known of its run."""

    name: str
    """For messages, as the user gave it."""
    weights: str
    """Folder of torch.distributed.checkpoint, with tensors `model.*` and, in a checkpoint, `optimizer.*.*`."""
    has_states: bool
    """Whether optimizer states are read from it; not for the best weights, nor for bare weights."""
    config: TrainConfig | None = None
    """Of the run that it belongs to; None for a bare folder of weights."""
    schema: Schema | None = None
    """Of the log of that run."""
    columns: Columns | None = None
    """`Columns.select(schema, features=..., labels=...)` of that run."""
    step: int | None = None
    """Steps that the run had made; None for weights."""
    epoch: int = 0
    """The epoch of the last one, counted from 0."""
    rows_left: int = 0
    """Rows of that epoch that the run had not trained on; 0 for weights."""
    lineage: StartRecord | None = None
    """What start.json of the run tells; None for bare weights, and for a run of an earlier version."""


def open_source(config: TrainConfig) -> StartSource:
    """Opens what `config.start_from` names, and reads it once to see that it is whole; all ranks call it.

    Of a run and of a folder of checkpoints, the newest checkpoint that can be read.

    Raises UserError for a path that is no run, checkpoint or weights, for a run that is still trained or has another
    architecture; DamagedError where nothing can be read.

    Example::

        open_source(replace(config, start_from="runs/monday")).weights  # "runs/monday/checkpoints/step-000000200"
    """
    name = config.start_from
    assert name is not None, "only a run with --start-from has a source"
    paths = from_first_rank(lambda: _candidates(name))
    for path in paths:
        try:
            source = from_first_rank(partial(_source_in, path, config))
            read_metadata(source.weights)
        except DamagedError as error:
            if path == paths[-1]:
                break
            log_rank0(f"note: {error}; trying the checkpoint before")
            continue
        return source
    which = "none of its checkpoints can" if len(paths) > 1 else f"{paths[0]} cannot"
    raise DamagedError(
        f"--start-from {name}: {which} be read; give another checkpoint, or RUN:best for the best weights of a run."
    )


def config_of_source(name: str) -> TrainConfig | None:
    """The configuration of the run, or of the checkpoint's run, that `--start-from` names.

    None for bare weights, and where there is nothing to read, which `open_source` then refuses.
    """
    text = _without_ending(name)
    path = path_of(text)
    if (path / CONFIG_FILE).exists():
        return read_config(str(path / CONFIG_FILE), all_options())
    checkpoints = [text] if (path / PROGRESS_FILE).exists() else _checkpoints_in(text) if path.is_dir() else []
    for checkpoint in checkpoints:
        with suppress(DamagedError):
            return _config_of(progress_of(checkpoint, all_options()))
    return None


def _config_of(progress: Progress) -> TrainConfig:
    return config_from_dict(progress.config, all_options())


def with_source_path(config: TrainConfig) -> TrainConfig:
    """The configuration with an absolute path of its source, by which a run is known again from another folder.

    Raises UserError for a source together with `--resume PATH`, and for one in the run's own folder.
    """
    name = config.start_from
    if name is None:
        return config
    if config.resume not in ("auto", "never"):
        raise UserError(
            f"--start-from {name} and --resume {config.resume} exclude each other: a run starts from another's state, "
            "or resumes one on the same log; leave one of them out."
        )
    source, run = (
        path if "://" in path else os.path.realpath(path) for path in (_without_ending(name), config.output_dir or "")
    )
    if config.output_dir and f"{source}/".startswith(f"{run.rstrip('/')}/"):
        raise UserError(
            f"--start-from {name} is in the run folder of --output-dir itself; give another --output-dir, or --config "
            f"{config.output_dir}/{CONFIG_FILE} without --start-from to resume it."
        )
    return config if "://" in name else replace(config, start_from=os.path.abspath(name))


def _without_ending(start_from: str) -> str:
    return start_from.removesuffix(BEST).rstrip("/")


def _candidates(name: str) -> list[str]:
    """The folders of checkpoints or weights to try, in their order; raises UserError if there is none."""
    text = _without_ending(name)
    path = path_of(text)
    if not path.is_dir():
        raise UserError(f"--start-from {name}: there is no folder {path}; {_instead_of(path)}.")
    if (path / CONFIG_FILE).exists():
        return _candidates_of_run(name, path)
    if name.endswith(BEST):
        raise UserError(f"--start-from {name}: {path} is no run, so it has no best weights; leave out {BEST}.")
    if path.name == BEST_WEIGHTS and (path.parent / CONFIG_FILE).exists():
        raise UserError(
            f"--start-from {name} is the best weights of a run, which do not tell what their ids mean; give "
            f"{path.parent}{BEST}."
        )
    if (path / PROGRESS_FILE).exists():
        return [text]
    if checkpoints := _checkpoints_in(text):
        return checkpoints
    if path.name.startswith("step-"):
        raise UserError(f"--start-from {name} has no {PROGRESS_FILE}: it was not written to its end; give another.")
    try:
        return [str(find_weights(path))]
    except UserError as error:
        raise UserError(
            f"--start-from {name} is no run, checkpoint or folder of weights; give RUN, RUN{BEST}, "
            "RUN/checkpoints/step-000000100, or what torch.distributed.checkpoint wrote."
        ) from error


def _instead_of(path: AnyPath) -> str:
    """What to give instead of a folder that is gone, as of an older checkpoint, or was never there."""
    kept = _checkpoints_in(str(path.parent)) if path.name.startswith("step-") and path.parent.is_dir() else []
    if kept:
        return f"{path.parent} has {', '.join(path_of(each).name for each in kept)}; give one of them"
    run, colon, _ = str(path).rpartition(":")
    if colon and path_of(run).is_dir():
        return f"give {run}, or {run}{BEST}"
    return "give a run, a checkpoint or weights"


def _candidates_of_run(name: str, run: AnyPath) -> list[str]:
    checkpoints = _checkpoints_in(_checkpoints_of(run))
    owner = read_owner(str(run))
    if owner is not None and not owner.has_ended:
        instead = f"a copy of its checkpoint {checkpoints[0]}" if checkpoints else "it when it has ended"
        raise UserError(f"--start-from {name} is still trained by {owner}; wait until it ends, or give {instead}.")
    if name.endswith(BEST):
        try:
            return [str(find_weights(run / BEST_WEIGHTS))]
        except UserError as error:
            instead = f"{run}, its newest checkpoint" if checkpoints else "a run that has been trained"
            raise UserError(
                f"--start-from {name} has no best weights, which a run writes at its first evaluation; give {instead}."
            ) from error
    if not checkpoints:
        best = f"{name}{BEST}, its best weights with fresh optimizer states"
        instead = best if (run / BEST_WEIGHTS).exists() else "a run that has been trained"
        raise UserError(f"--start-from {name} has no checkpoint; give {instead}.")
    return checkpoints


def _checkpoints_of(run: AnyPath) -> str:
    """The folder of a run's checkpoints, which config.yaml does not name."""
    started = read_start(run)
    elsewhere = None if started is None else started.checkpoints
    return elsewhere or checkpoints_folder(CheckpointConfig(), run)


def _checkpoints_in(folder: str) -> list[str]:
    return [checkpoint_path(folder, step) for step in complete_steps(folder)]


def _source_in(path: str, config: TrainConfig) -> StartSource:
    """The source in a folder of a checkpoint or of weights, of which only the small files are read."""
    name = config.start_from or ""
    if (path_of(path) / PROGRESS_FILE).exists():
        progress = progress_of(path, all_options())
        trained = _config_of(progress)
        schema = from_dict(Schema, progress.schema)
        lineage = start_of(dict(progress.start)) if progress.start else None
        left = sum(count(spans) for of_rank in progress.left for spans in of_rank)
        source = StartSource(
            name, path, True, trained, schema,
            step=progress.step, epoch=progress.epoch, rows_left=left, lineage=lineage,
        )  # fmt: skip
    else:
        run = path_of(_without_ending(name))
        if not (run / CONFIG_FILE).exists():
            return StartSource(name, path, False)
        trained, schema = read_config(str(run / CONFIG_FILE), all_options()), load_schema(str(run))
        source = StartSource(name, path, False, trained, schema, lineage=read_start(run))
    _check_architecture(name, trained, config)
    columns = Columns.select(schema, features=trained.data.features, labels=trained.data.labels)
    return replace(source, columns=columns)


def _check_architecture(name: str, trained: TrainConfig, config: TrainConfig) -> None:
    if trained.model.arch != config.model.arch:
        raise UserError(
            f"--start-from {name} is a {trained.model.arch} and this run a {config.model.arch}, whose modules differ; "
            f"give --model.arch {trained.model.arch}, or leave out --start-from."
        )
