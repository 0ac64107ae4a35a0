"""The folder of a run's checkpoints: `step-000000120/`, each with its progress.json, which is written last.

A folder without progress.json is no checkpoint: it is being written, or its writing was cut off.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from iopath.common.file_io import g_pathmgr

from stem_torchrec.config import ModelConfig, TrainConfig
from stem_torchrec.config.formats import with_format, without_format
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.data.schema import Schema
from stem_torchrec.runtime.paths import move, remove_folder

PROGRESS_FILE = "progress.json"
PROGRESS_FORMAT = 1
"""Format version of progress.json."""
_PREFIX = "step-"
_CHECKSUM = "sha256"


@dataclass(frozen=True)
class Progress:
    """How far a run is, beside its weights and the states of its optimizers."""

    step: int
    """Steps made."""
    epoch: int
    """Counted from 0."""
    left: Sequence[Sequence[Sequence[tuple[int, int]]]]
    """Rows of the epoch that are left to read, see `data.spans`."""
    evaluate: bool
    """Whether an evaluation is due before the next step."""
    best: float | None
    """The best validation so far, None before the first."""
    waited: int
    """Validations since."""
    world_size: int
    config: Mapping[str, Any]
    """The run's configuration."""
    schema: Mapping[str, Any]
    """What the log's columns are."""
    row_groups: str
    """Fingerprint of the training split's row groups."""
    skipped_batches: int = 0
    """Batches whose loss was not finite."""


def checkpoint_path(folder: str, step: int) -> str:
    """The folder of the checkpoint after a step."""
    return f"{folder}/{_PREFIX}{step:09d}"


def complete_steps(folder: str) -> list[int]:
    """Steps of the complete checkpoints in `folder`, the newest first."""
    return [step for step in _steps(folder) if g_pathmgr.exists(f"{checkpoint_path(folder, step)}/{PROGRESS_FILE}")]


def publish(path: str, progress: Progress) -> None:
    """Makes what was written to `path` a checkpoint."""
    new = f"{path}/{PROGRESS_FILE}.new"
    content = with_format(json.loads(json.dumps(asdict(progress))), PROGRESS_FORMAT)
    with g_pathmgr.open(new, "w") as file:
        file.write(json.dumps({**content, _CHECKSUM: _checksum(path, content)}, indent=1) + "\n")
    move(new, f"{path}/{PROGRESS_FILE}")


def read_progress(path: str, model: type[ModelConfig] = ModelConfig) -> Progress:
    """What `publish` wrote, with the defaults of fields that the program which wrote it did not have.

    Args:
        path: of the checkpoint.
        model: the options of the model that the run would resume with; their fields have defaults, too.

    Raises FormatError for a file in a newer format, OSError or ValueError for one that cannot be read.
    """
    with g_pathmgr.open(f"{path}/{PROGRESS_FILE}", "r") as file:
        content = json.loads(file.read())
    # Before the checksum, which a newer program may compute differently.
    fields = without_format(content, PROGRESS_FORMAT, f"{path}/{PROGRESS_FILE}")
    checksum = content.pop(_CHECKSUM, None)
    if checksum != _checksum(path, content):
        raise ValueError(f"{PROGRESS_FILE} or .metadata is not what was written there")
    try:
        progress = Progress(**{name: value for name, value in fields.items() if name != _CHECKSUM})
    except TypeError as error:
        raise ValueError(f"{PROGRESS_FILE} has other fields than this version's ({error})") from error
    schema = from_dict(Schema, progress.schema)
    return replace(progress, config=_with_defaults(progress.config, model), schema=to_dict(schema))


def _with_defaults(config: Mapping[str, Any], model: type[ModelConfig]) -> dict[str, Any]:
    """A stored configuration with all fields of this program's, without options that only other models have."""
    section = config.get("model", {})
    if section.get("arch", ModelConfig.arch) == model.arch:
        section = {name: section.get(name, default) for name, default in to_dict(model()).items()}
    return {**to_dict(from_dict(TrainConfig, {**config, "model": {}})), "model": section}


def _checksum(path: str, progress: Mapping[str, Any]) -> str:
    """Of what says where everything else of a checkpoint is; the rest has checksums of its own."""
    metadata = b""
    if g_pathmgr.exists(f"{path}/.metadata"):
        with g_pathmgr.open(f"{path}/.metadata", "rb") as file:
            metadata = file.read()
    return hashlib.sha256(json.dumps(progress, sort_keys=True).encode() + metadata).hexdigest()


def prune(folder: str, *, keep: int, newest: int) -> None:
    """Removes all checkpoints but the last `keep` up to the one after step `newest`, and what was cut off before it."""
    kept = [step for step in complete_steps(folder) if step <= newest][:keep]
    for step in _steps(folder):
        if step not in kept:
            remove_folder(checkpoint_path(folder, step), first=PROGRESS_FILE)


def _steps(folder: str) -> list[int]:
    names = g_pathmgr.ls(folder) if g_pathmgr.isdir(folder) else []
    numbers = [name.removeprefix(_PREFIX).rstrip("/") for name in names if name.startswith(_PREFIX)]
    return sorted((int(number) for number in numbers if number.isdigit()), reverse=True)
