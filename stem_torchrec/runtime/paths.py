"""Writing files so that a reader finds them whole, and operations that not every file system of iopath has."""

import json
import os
from pathlib import Path
from typing import Any

from iopath.common.file_io import g_pathmgr

from stem_torchrec.runtime.errors import UnwritableError, reason_of


def write_json(path: Path, value: Any) -> None:
    """Writes JSON; see `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replaces a file by text at once: a reader finds the old file or the new one, whole. Raises UnwritableError."""
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(text)
        new.rename(path)
    except OSError as error:
        raise UnwritableError(f"{path} cannot be written ({reason_of(error)})") from error


def move(source: str, target: str) -> None:
    """Renames a file within its folder; in an object store, which cannot rename, copies it and removes the source.

    Raises OSError if the file cannot be moved.
    """
    try:
        moved = g_pathmgr.mv(source, target)
    except NotImplementedError:
        moved = g_pathmgr.copy(source, target, overwrite=True)
        if moved:
            g_pathmgr.rm(source)
    # Some handlers return False instead of raising an error.
    if not moved:
        raise OSError(f"{source} could not be moved to {target}")


def remove_folder(path: str, *, first: str) -> None:
    """Removes a folder of files, beginning with the file named `first`, so that a half-removed folder lacks it."""
    for name in sorted(g_pathmgr.ls(path), key=lambda name: name != first):
        g_pathmgr.rm(f"{path}/{name}")
    # An object store has no empty folders: the folder ends with its last file.
    if os.path.isdir(path):
        os.rmdir(path)
