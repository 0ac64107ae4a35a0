"""The folder of a run's checkpoints: `step-000000120/`, each with its progress.json, which is written last.

A folder without progress.json is not a checkpoint: it is being written, or writing it was interrupted.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from stem_torchrec.config.files import config_from_dict
from stem_torchrec.config.formats import FormatError, with_format, without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.model import Models
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.data.footers import LAYOUT
from stem_torchrec.data.schema import Schema, schema_to_dict
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.file_systems import g_pathmgr
from stem_torchrec.runtime.paths import move, remove_folder

PROGRESS_FILE = "progress.json"
PROGRESS_FORMAT = 1
"""Format version of progress.json."""
_PREFIX = "step-"
_CHECKSUM = "sha256"


@dataclass(frozen=True)
class Progress:
    """How far a run is; progress.json of a checkpoint, beside the weights and optimizer states."""

    step: int
    """Steps made."""
    epoch: int
    """Counted from 0."""
    left: Sequence[Sequence[Sequence[tuple[int, int]]]]
    """The epoch's rows that are left to read, as `data.spans` has them."""
    evaluate: bool
    """Whether an evaluation is due before the next step."""
    best: float | None
    """The best value of the watched metric so far, None before the first evaluation."""
    waited: int
    """Evaluations since the best one."""
    world_size: int
    """Number of ranks."""
    config: Mapping[str, Any]
    """The run's configuration."""
    schema: Mapping[str, Any]
    """The schema of the run's log."""
    row_groups: str
    """Fingerprint of the training split's row groups."""
    skipped_batches: int = 0
    """Batches skipped because their loss was not finite."""
    contents: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What the files' footers tell about the rows of each split; empty if an earlier version wrote the checkpoint."""
    start: Mapping[str, Any] = field(default_factory=dict)
    """What start.json of the run tells, without what was carried; empty if an earlier version wrote the checkpoint."""

    by_task: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """By task, its best score and the evaluations since, of a run that keeps the best weights of each task."""
    plateaus: int = 0
    """Evaluations without a better value of the watched metric since the run began."""

    @property
    def rows(self) -> Mapping[str, Mapping[str, str]]:
        """The contents of the splits that the run has read; an earlier version knew only the training row groups."""
        known = self.contents or {"train": {LAYOUT: self.row_groups}}
        # Until something was measured on the validation split, its bad rows may be repaired.
        return {split: entries for split, entries in known.items() if split != "valid" or self.best is not None}


def checkpoint_path(folder: str, step: int) -> str:
    """The folder of the checkpoint after a step, as `checkpoints/step-000000120`."""
    return f"{folder}/{_PREFIX}{step:09d}"


def complete_steps(folder: str) -> list[int]:
    """Steps of the complete checkpoints in `folder`, the newest first; [] if the folder does not exist."""
    return [step for step in _steps(folder) if g_pathmgr.exists(f"{checkpoint_path(folder, step)}/{PROGRESS_FILE}")]


def publish(path: str, progress: Progress) -> None:
    """Completes the checkpoint that was written to `path`, by writing its progress.json."""
    new = f"{path}/{PROGRESS_FILE}.new"
    content = with_format(json.loads(json.dumps(asdict(progress))), PROGRESS_FORMAT)
    with g_pathmgr.open(new, "w") as file:
        file.write(json.dumps({**content, _CHECKSUM: _checksum(path, content)}, indent=1) + "\n")
    move(new, f"{path}/{PROGRESS_FILE}")


def read_progress(path: str, models: Models) -> Progress:
    """What `publish` wrote, with the defaults of fields that the program which wrote it did not have.

    Args:
        path: of the checkpoint.
        models: the options that each model has.

    Raises FormatError for a file in a newer format, or with a field that this program does not know or a value that it
    does not take, as of a newer program; OSError or ValueError for one that cannot be read or was changed since.
    """
    with g_pathmgr.open(f"{path}/{PROGRESS_FILE}", "r") as file:
        content = parse_json(file.read())
    if not isinstance(content, dict):
        raise ValueError(f"{PROGRESS_FILE} is not a mapping")
    # Before the checksum, which a newer program may compute differently.
    fields = without_format(content, PROGRESS_FORMAT, f"{path}/{PROGRESS_FILE}")
    checksum = content.pop(_CHECKSUM, None)
    if checksum != _checksum(path, content):
        raise ValueError(f"{PROGRESS_FILE} or .metadata is not what was written there")
    try:
        progress = Progress(**{name: value for name, value in fields.items() if name != _CHECKSUM})
        # Before files had a format, they had all models' options, as config.yaml.
        config = config_from_dict(progress.config, models, of_all_models=fields is content)
        schema = from_dict(Schema, progress.schema)
    except (TypeError, UserError) as error:
        # What the checksum is of is not damaged: an earlier checkpoint would hide that this one is not understood.
        raise FormatError(
            f"{path}/{PROGRESS_FILE}: {reason_of(error)}; if a newer stem_torchrec wrote the checkpoint, install that "
            "version, else give another checkpoint."
        ) from error
    return replace(progress, config=to_dict(config), schema=schema_to_dict(schema))


def _checksum(path: str, progress: Mapping[str, Any]) -> str:
    """Of progress.json and .metadata, which locate everything else in a checkpoint; the rest has its own checksums."""
    metadata = b""
    if g_pathmgr.exists(f"{path}/.metadata"):
        with g_pathmgr.open(f"{path}/.metadata", "rb") as file:
            metadata = file.read()
    return hashlib.sha256(json.dumps(progress, sort_keys=True).encode() + metadata).hexdigest()


def prune(folder: str, *, keep: int, newest: int) -> None:
    """Removes all but the newest checkpoints, and folders that are not complete.

    Args:
        folder: of the checkpoints.
        keep: number of checkpoints to keep.
        newest: step of the newest checkpoint that counts; those of later steps are removed, complete or not.
    """
    kept = [step for step in complete_steps(folder) if step <= newest][:keep]
    for step in _steps(folder):
        if step not in kept:
            remove_folder(checkpoint_path(folder, step), first=PROGRESS_FILE)


def _steps(folder: str) -> list[int]:
    names = g_pathmgr.ls(folder) if g_pathmgr.isdir(folder) else []
    numbers = [name.removeprefix(_PREFIX).rstrip("/") for name in names if name.startswith(_PREFIX)]
    return sorted((int(number) for number in numbers if number.isdigit()), reverse=True)
