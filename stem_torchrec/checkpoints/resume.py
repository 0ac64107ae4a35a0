"""Where a run resumes: from the newest checkpoint of its own folder, or from one that `--resume` names."""

from stem_torchrec.checkpoints.compatibility import Rows, check_same_options, check_same_rows, check_same_run
from stem_torchrec.checkpoints.folder import PROGRESS_FILE, Progress, checkpoint_path, complete_steps, read_progress
from stem_torchrec.config import CheckpointConfig, TrainConfig
from stem_torchrec.config.files import what_is_trained
from stem_torchrec.config.formats import FormatError
from stem_torchrec.config.model import Models
from stem_torchrec.config.narrowed import kind_of
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.data.schema import Schema, schema_to_dict
from stem_torchrec.runtime.errors import DamagedError, UserError, reason_of
from stem_torchrec.runtime.file_systems import g_pathmgr
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.store_path import AnyPath, path_of


def checkpoints_folder(config: CheckpointConfig, run: AnyPath) -> str:
    """The folder of the checkpoints of the run in the folder `run`."""
    return (config.folder or str(run / "checkpoints")).rstrip("/")


def own_checkpoints(config: TrainConfig) -> str | None:
    """The folder of the run's own checkpoints; None for a run that gets a new folder, which has no name yet."""
    if config.output_dir or config.checkpoint.folder:
        return checkpoints_folder(config.checkpoint, path_of(config.output_dir or ""))
    return None


def check_resume(config: TrainConfig, schema: Schema, rows: Rows, *, models: Models) -> None:
    """Raises UserError if `--resume` names no checkpoint or one of another run; all ranks call it.

    It is called before the run folder is written to. A run with `--resume never` also raises it if its folder holds
    checkpoints, which it would overwrite.

    Args:
        config: of the run.
        schema: of its log.
        rows: `data.footers.contents` of the splits.
        models: the options that each model has.
    """

    def check() -> None:
        own = own_checkpoints(config)
        if config.resume == "never" and own is not None and complete_steps(own):
            raise UserError(
                f"{own} holds a run's checkpoints; give another --output-dir, or --resume auto to continue."
            )
        for path in candidates(config.resume, own):
            try:
                progress = progress_of(path, models)
            except DamagedError:
                continue
            check_same_run(path, (progress.config, progress.schema), (to_dict(config), schema_to_dict(schema)))
            check_same_rows(path, progress.rows, rows)
            if config.checkpoint.folder and path.startswith(f"{own}/"):
                _check_same_owner(path, progress, config)
            return

    from_first_rank(check)


def _check_same_owner(path: str, progress: Progress, config: TrainConfig) -> None:
    """Raises UserError for a checkpoint in `--checkpoint.folder` by another run, with other options."""
    saved: TrainConfig = from_dict(kind_of(config), dict(progress.config))
    if path_of(saved.output_dir or "") != path_of(config.output_dir or ""):
        before, now = (to_dict(what_is_trained(each)) for each in (saved, config))
        check_same_options(path, before, now, other="--checkpoint.folder")


def candidates(resume: str, folder: str | None) -> list[str]:
    """Paths of the checkpoints to resume from, in the order in which they are tried.

    Args:
        resume: auto, never, or the path of a checkpoint or of a folder of checkpoints. Those of a path come after the
            run's own, for a run that has none or only damaged ones.
        folder: of the run's own checkpoints; None for a run that has no folder yet.

    Raises UserError for a path without a checkpoint if the run has none of its own either.

    Example::

        candidates("auto", "runs/a/checkpoints")  # ["runs/a/checkpoints/step-000000200", ".../step-000000100"]
    """
    if resume == "never":
        return []
    paths = [] if folder is None else _checkpoints_in(folder)
    if resume != "auto":
        other = resume.rstrip("/")
        is_checkpoint = g_pathmgr.exists(f"{other}/{PROGRESS_FILE}")
        paths += [path for path in ([other] if is_checkpoint else _checkpoints_in(other)) if path not in paths]
    if resume != "auto" and not paths:
        raise UserError(f"--resume {resume} holds no checkpoint; give one, as RUN/checkpoints/step-000000100, or auto.")
    return paths


def progress_of(path: str, models: Models) -> Progress:
    """How far the run of the checkpoint at `path` was; `models` are the options that each model has.

    Raises DamagedError if that cannot be read, FormatError if a newer program wrote it.
    """
    try:
        return read_progress(path, models)
    except FormatError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read: {reason_of(error)}") from error


def _checkpoints_in(folder: str) -> list[str]:
    """Paths of the complete ones, the newest first."""
    return [checkpoint_path(folder, step) for step in complete_steps(folder)]
