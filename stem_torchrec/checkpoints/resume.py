"""Where a run goes on: the newest checkpoint of its own folder, or one that `--resume` names."""

from pathlib import Path

from iopath.common.file_io import g_pathmgr

from stem_torchrec.checkpoints.compatibility import check_same_run
from stem_torchrec.checkpoints.folder import PROGRESS_FILE, Progress, checkpoint_path, complete_steps, read_progress
from stem_torchrec.config import CheckpointConfig, TrainConfig
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.data.schema import Schema, schema_to_dict
from stem_torchrec.runtime.errors import DamagedError, UserError, reason_of
from stem_torchrec.runtime.process import from_first_rank


def checkpoints_folder(config: CheckpointConfig, run: Path) -> str:
    """The folder of the checkpoints of the run in the folder `run`."""
    return (config.folder or str(run / "checkpoints")).rstrip("/")


def check_resume(config: TrainConfig, schema: Schema) -> None:
    """Raises UserError where the run would go on from nothing, or from another run's checkpoint; all ranks call it.

    So that neither is found out when the run folder has been written to. Nor does a run that shall not go on take the
    place of one that could.
    """

    def check() -> None:
        own = None
        # Without both the run folder is a new one, which has no name yet.
        if config.output_dir or config.checkpoint.folder:
            own = checkpoints_folder(config.checkpoint, Path(config.output_dir or ""))
        if config.resume == "never" and own is not None and complete_steps(own):
            raise UserError(f"{own} holds a run's checkpoints; give another --output-dir, or --resume auto to go on.")
        for path in candidates(config.resume, own):
            try:
                progress = progress_of(path)
            except DamagedError:
                continue
            check_same_run(path, (progress.config, progress.schema), (to_dict(config), schema_to_dict(schema)))
            return

    from_first_rank(check)


def candidates(resume: str, folder: str | None) -> list[str]:
    """Checkpoints to go on from, the best first.

    Args:
        resume: auto, never, or the path of a checkpoint or of a folder of checkpoints, for a run without its own, or
            where its own are damaged.
        folder: the run's checkpoints; None for a run that has no folder yet.

    Raises UserError for a path without one.
    """
    if resume == "never":
        return []
    found = [] if folder is None else _checkpoints_in(folder)
    if resume != "auto":
        there = resume.rstrip("/")
        one = g_pathmgr.exists(f"{there}/{PROGRESS_FILE}")
        elsewhere = [there] if one else _checkpoints_in(there)
        found += [path for path in elsewhere if path not in found]
    if resume != "auto" and not found:
        raise UserError(f"--resume {resume} holds no checkpoint; give one, as RUN/checkpoints/step-000000100, or auto.")
    return found


def progress_of(path: str) -> Progress:
    """How far the run of a checkpoint was; raises DamagedError where that cannot be read."""
    try:
        return read_progress(path)
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read: {reason_of(error)}") from error


def _checkpoints_in(folder: str) -> list[str]:
    """The newest first."""
    return [checkpoint_path(folder, step) for step in complete_steps(folder)]
