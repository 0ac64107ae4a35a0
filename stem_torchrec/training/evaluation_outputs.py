"""Where an evaluation's results go: checked before the work, so that they replace nothing but earlier results."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stem_torchrec.config.json_text import parse_json
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.owner_file import OWNER_FILE
from stem_torchrec.runtime.paths import check_writable, write_json
from stem_torchrec.runtime.store_path import AnyPath, path_of
from stem_torchrec.training.run_folder import RUN_FILES

_LONGEST_JSON = 2**20
"""Bytes of the metrics of an evaluation, at most."""


def prepare_outputs(run: str, lock: FolderLock, *, metrics: str | None, predictions: str | None) -> None:
    """Makes the folders that the results go to; rank 0 calls it before the work.

    Args:
        run: the run folder.
        lock: takes the folder of the predictions.
        metrics: `--json`.
        predictions: `--predictions`.

    Raises UserError for a file or folder of the run itself, a folder that is in use or holds something, and a file that
    holds something other than such metrics; OSError where the results cannot be written.
    """
    for option, path in (("--json", metrics), ("--predictions", predictions)):
        if path is not None:
            check_apart(path, run, option)
    if predictions is not None:
        lock.check(predictions, other="--predictions")
        _prepare_folder(path_of(predictions))
        lock.take(predictions, other="--predictions")
    if metrics is not None:
        _prepare_file(path_of(metrics))


def check_apart(path: str, run: str, option: str) -> None:
    """Raises UserError, which names the option, if `path` is the run folder or in one of its files and folders."""
    real = _real(path)
    own = [_real(f"{run}/{name}") for name in RUN_FILES]
    if real == _real(run) or any(f"{real}/".startswith(f"{each}/") for each in own):
        raise UserError(f"{option} {path} is a part of the run {run} itself; give another.")


def _real(path: str) -> str:
    return path if "://" in path else os.path.realpath(path)


def _prepare_folder(folder: AnyPath) -> None:
    files = [file for file in folder.iterdir() if not file.name.startswith(OWNER_FILE)] if folder.is_dir() else []
    # An evaluation that was interrupted leaves files with the suffix .new.
    unfinished = [file for file in files if file.name.startswith("part-") and file.name.endswith(".parquet.new")]
    if len(unfinished) < len(files):
        holds = "predictions already" if any(file.name.endswith(".parquet") for file in files) else "other files"
        raise UserError(f"{folder} holds {holds}; give another --predictions.")
    for file in unfinished:
        file.unlink()


def _prepare_file(file: AnyPath) -> None:
    if file.is_dir():
        raise UserError(f"--json {file} is a folder; give a file.")
    if file.exists() and not _holds_metrics(file):
        raise UserError(f"--json {file} exists, and does not hold the metrics of an evaluation; give another.")
    check_writable(file.parent)


def _holds_metrics(file: AnyPath) -> bool:
    """Whether a file is empty or holds the metrics of each task by split, as `{"test": {"like": {"auc": 0.8}}}`."""
    with file.open("rb") as opened:
        text = opened.read(_LONGEST_JSON + 1)
    try:
        splits = parse_json(text or b"{}") if len(text) <= _LONGEST_JSON else None
    except ValueError:
        return False
    return isinstance(splits, dict) and all(
        isinstance(tasks, dict) and all(isinstance(task, dict) and "auc" in task for task in tasks.values())
        for tasks in splits.values()
    )


def write_results(file: str, splits: Mapping[str, Any]) -> None:
    """Writes the metrics of each task by split as JSON; a link stays, and the file that it leads to is replaced.

    Raises UnwritableError.
    """
    path = path_of(file)
    write_json(path.resolve() if isinstance(path, Path) else path, splits)
