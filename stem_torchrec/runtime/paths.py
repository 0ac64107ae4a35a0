"""Files and folders, local or in a store: written so that a reader finds them whole, moved and removed."""

import ctypes
import json
import os
import shutil
from pathlib import Path
from typing import Any

from stem_torchrec.runtime.errors import UnwritableError, reason_of
from stem_torchrec.runtime.file_systems import g_pathmgr
from stem_torchrec.runtime.internals.path_handlers import handler_of
from stem_torchrec.runtime.store_path import AnyPath, StorePath
from stem_torchrec.runtime.whole_file import check_replaceable, naming_file, whole_file

_PROBE_BYTES = 4096
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Of renameat2 in Linux: paths as they are, and an exchange."""


def write_json(path: AnyPath, value: Any) -> None:
    """Writes JSON; see `write_text`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: AnyPath, text: str) -> None:
    """Replaces a file by text at once: a reader finds the old file or the new one, whole.

    A link is replaced as well, and the file that it leads to stays. Raises UnwritableError, also where `path` is a
    device, a FIFO or a folder.
    """
    try:
        if isinstance(path, StorePath):
            path.write_text(text)
            return
        with whole_file(path) as new:
            new.write_text(text)
    except OSError as error:
        raise UnwritableError(f"{path} cannot be written ({reason_of(error)})") from error


def check_writable(folder: AnyPath) -> None:
    """Makes a folder and writes a file in it for a moment; raises OSError, which names the folder, where that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".writable-{os.getpid()}"
    with naming_file(str(folder)):
        try:
            # A full disk has room for an empty file.
            probe.write_text(" " * _PROBE_BYTES)
        finally:
            probe.unlink(missing_ok=True)


def move(source: str, target: str) -> None:
    """Gives a file the name of another in its folder, which it replaces; in a store, which cannot rename, by a copy.

    Raises OSError if the file cannot be moved, or `target` is not a regular file.
    """
    if handler_of(g_pathmgr, target) is None:
        check_replaceable(Path(target))
        os.replace(source, target)
        return
    try:
        moved = g_pathmgr.mv(source, target)
    except NotImplementedError:
        moved = g_pathmgr.copy(source, target, overwrite=True)
        if moved:
            g_pathmgr.rm(source)
    # Some handlers return False instead of raising an error.
    if not moved:
        raise OSError(f"{source} could not be moved to {target}")


def exchange(folder: Path, other: Path) -> None:
    """Gives two folders each other's name; at no moment is one of the names missing, where the file system can do that.

    Elsewhere `folder` is missing for a moment, and a process that is killed then leaves what it was as `.old.NAME`.

    Raises OSError if the folders cannot be renamed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    names = (_AT_FDCWD, os.fsencode(folder), _AT_FDCWD, os.fsencode(other))
    if libc.renameat2(*names, _RENAME_EXCHANGE) == 0:
        return
    old = folder.with_name(f".old.{folder.name}")
    folder.rename(old)
    other.rename(folder)
    old.rename(other)


def remove_folder(path: str, *, first: str) -> None:
    """Removes a folder of files, beginning with the file named `first`, so that a half-removed folder lacks it."""
    for name in sorted(g_pathmgr.ls(path), key=lambda name: name != first):
        g_pathmgr.rm(f"{path}/{name}")
    # An object store has no empty folders: the folder ends with its last file.
    if os.path.isdir(path):
        os.rmdir(path)


def remove_tree(folder: AnyPath) -> None:
    """Removes a folder with all that is in it, if it exists."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.is_dir():
        for path in folder.iterdir():
            remove_tree(path)
            path.unlink(missing_ok=True)
