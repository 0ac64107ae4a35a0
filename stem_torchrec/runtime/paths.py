"""Operations on iopath's paths that not every handler of a file system has."""

import os

from iopath.common.file_io import g_pathmgr


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
