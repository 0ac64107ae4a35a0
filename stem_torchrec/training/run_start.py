"""Which folders a run gets, and whether it may use them: one run at a time, and no run replaces another."""

from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path

from stem_torchrec.checkpoints.compatibility import check_same_options, check_same_rows, check_same_run
from stem_torchrec.checkpoints.folder import complete_steps
from stem_torchrec.checkpoints.resume import check_resume, checkpoints_folder
from stem_torchrec.config import TrainConfig, check_fields
from stem_torchrec.config.files import dump_config, what_is_trained
from stem_torchrec.config.path_fields import with_paths
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.folder import data_folder
from stem_torchrec.data.schema import SCHEMA_FILE, Schema, load_schema, schema_to_dict
from stem_torchrec.deltas.manifest import deltas_folder
from stem_torchrec.metrics.multi_task import TaskMetrics
from stem_torchrec.models.table import all_options, options_of
from stem_torchrec.runtime.errors import DamagedError, UnwritableError, UserError, reason_of
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.paths import write_text
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.store_path import AnyPath, path_of
from stem_torchrec.starting.source import with_source_path
from stem_torchrec.training.best_by_task import best_metrics
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.run_data import RunData
from stem_torchrec.training.run_folder import (
    CONFIG_FILE,
    RUN_FILES,
    folders_of_launch,
    has_ended,
    launch_name,
    read_metrics,
)


def with_data_folder(config: TrainConfig) -> tuple[TrainConfig, str]:
    """The configuration with absolute paths of its log and source, and that of the log, which is made if synthetic.

    Raises UserError for a field with a value that it does not take, and for a recipe without a log.
    """
    config = replace(config, model=options_of(config.model))
    check_fields(config)
    config = _with_own_source(with_source_path(with_paths(config)))
    path = data_folder(config.data)
    return (config if config.data.path is None else replace(config, data=replace(config.data, path=path))), path


def _with_own_source(config: TrainConfig) -> TrainConfig:
    """The configuration with what the run in its folder started from, where the command does not say it again.

    Where tables would begin anew, that and the number of epochs are the run's as well, as `--start-from` chooses them.
    """
    if config.start_from is not None or config.output_dir is None or config.resume == "never":
        return config
    saved = path_of(config.output_dir) / CONFIG_FILE
    if not saved.exists():
        return config
    before = load_config(str(saved))
    if before.start_from is None:
        return config
    train, of_run = config.train, before.train
    if train.fresh_tables:
        train = replace(train, fresh_tables=of_run.fresh_tables, epochs=of_run.epochs)
    return replace(config, start_from=before.start_from, start=before.start, train=train)


def check_run_folder(config: TrainConfig, schema: Schema, lock: FolderLock) -> None:
    """Raises UserError on all ranks if the run may not use its folders; before anything is built or written."""

    def check() -> None:
        run = path_of(config.output_dir) if config.output_dir else None
        for option, folder in _folders(config, run).items():
            lock.check(folder, other=option)
        if run is not None:
            _check_same_run(run, config, schema)

    from_first_rank(check)


def open_run_folder(config: TrainConfig, schema: Schema, lock: FolderLock) -> AnyPath:
    """Takes the folders of a run for all ranks, and writes config.yaml; all ranks get the same run folder.

    If the folder holds a run of the same options, the run resumes in it, unless `config.resume` is never. Raises
    UserError on all ranks where a folder is in use, holds another run, or cannot be written.
    """

    def make() -> AnyPath:
        folder = path_of(config.output_dir) if config.output_dir else _new_folder()
        try:
            lock.take(str(folder), other="--output-dir")
            # Another run may have used the folder since the check.
            _check_same_run(folder, config, schema)
            write_text(folder / CONFIG_FILE, dump_config(config))
            for option, each in _folders(config, folder).items():
                lock.take(each, other=option)
        except (OSError, UnwritableError) as error:
            raise UserError(f"the run folder {folder} cannot be written ({reason_of(error)}); give another.") from error
        return folder

    return from_first_rank(make)


def finished(config: TrainConfig, path: str, process: Process) -> dict[str, TaskMetrics] | None:
    """The metrics of the best evaluation, if the run folder holds a run of these options that has ended; else None.

    All ranks call it. Raises UserError where the folder holds a run of other options, or one that was trained on other
    rows than the log in `path` has, as on those of another day.
    """

    def read() -> dict[str, TaskMetrics] | None:
        if config.output_dir is None or config.resume == "never":
            return None
        folder = path_of(config.output_dir)
        if not has_ended(folder):
            return None
        _check_same_options(folder, load_config(str(folder / CONFIG_FILE)), config)
        tasks = Columns.select(load_schema(str(folder)), labels=config.data.labels).labels
        return best_metrics(folder, tasks)

    metrics = from_first_rank(read)
    if metrics is not None:
        _check_same_log(config, path, process)
    return metrics


def _check_same_log(config: TrainConfig, path: str, process: Process) -> None:
    # Of a run of an earlier version only its checkpoints tell the rows.
    schema, folder = load_schema(path), path_of(config.output_dir or "")
    with closing(RunData.open(config, path, schema, process)) as data:
        check_resume(config, schema, data.contents, models=all_options())
        rows = data.contents
        from_first_rank(lambda: check_same_rows(str(folder), read_metrics(folder).rows, rows))


def _folders(config: TrainConfig, run: AnyPath | None) -> dict[str, str]:
    """The folders that the run writes to, by option; without those below the run folder, if that has no name yet."""
    folders = {"--output-dir": run, "--checkpoint.folder": config.checkpoint.folder}
    # Another run may ship into the run folder's deltas, as one that started from this one's checkpoint.
    if config.delta.is_on and (config.delta.out or run is not None):
        folders["--delta.out"] = deltas_folder(config.delta, run or Path())
    return {option: str(folder) for option, folder in folders.items() if folder}


def _check_same_run(folder: AnyPath, config: TrainConfig, schema: Schema) -> None:
    """Raises UserError if this run would replace another one, whatever that one has written so far.

    A run that has no checkpoint yet starts again from the beginning, and only with the same options.
    """
    written = [name for name in RUN_FILES if (folder / name).exists()]
    if not written:
        return
    if config.resume == "never":
        raise UserError(f"{folder} holds a run already; give another --output-dir, or --resume auto to resume it.")
    if CONFIG_FILE not in written:
        raise DamagedError(
            f"{folder} holds {written[0]} but no {CONFIG_FILE}, so it is no run to resume; give another --output-dir."
        )
    saved = load_config(str(folder / CONFIG_FILE))
    own_schema = load_schema(str(folder)) if SCHEMA_FILE in written else schema
    check_same_run(str(folder), (to_dict(saved), schema_to_dict(own_schema)), (to_dict(config), schema_to_dict(schema)))
    if config.start_from not in (None, saved.start_from):
        began = f"started from {saved.start_from}" if saved.start_from else "started anew"
        raise UserError(
            f"the run in {folder} {began}, not from {config.start_from}; give another --output-dir, or --config "
            f"{folder}/{CONFIG_FILE} without --start-from to resume it."
        )
    if not complete_steps(checkpoints_folder(config.checkpoint, folder)):
        _check_same_options(folder, saved, config)


def _check_same_options(folder: AnyPath, saved: TrainConfig, config: TrainConfig) -> None:
    check_same_options(str(folder), to_dict(what_is_trained(saved)), to_dict(what_is_trained(config)))


def with_folder_of_launch(config: TrainConfig, schema: Schema) -> TrainConfig:
    """The configuration with the folder that the run has got before its launcher restarted it; all ranks call it.

    So a restart without `--output-dir` is a run in that folder, which resumes from its own checkpoints and reads no
    source again. Unchanged if `--output-dir` is given, without a launcher, and at the first start.
    """

    def find() -> TrainConfig:
        for before in folders_of_launch():
            own = replace(config, output_dir=str(before))
            with suppress(UserError):
                _check_same_run(before, own, schema)
                if not has_ended(before):
                    return own
        return config

    return config if config.output_dir else from_first_rank(find)


def _new_folder() -> Path:
    """A new folder below runs/, named by the time and the launch."""
    launch = launch_name()
    now = f"runs/{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        folder = Path("-".join([now, *([str(number)] if number > 1 else []), *([launch] if launch else [])]))
        try:
            # Of runs that start in the same second, each makes a folder of its own.
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        break
    return folder
