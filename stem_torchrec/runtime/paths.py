"""What paths of iopath can do that not every handler of a file system offers."""

import os

from iopath.common.file_io import g_pathmgr


def move(source: str, target: str) -> None:
    """Gives a file another name in its folder; object stores, which cannot rename, copy it and remove the first."""
    try:
        moved = g_pathmgr.mv(source, target)
    except NotImplementedError:
        moved = g_pathmgr.copy(source, target, overwrite=True)
        if moved:
            g_pathmgr.rm(source)
    # Some handlers raise no error, but say that it did not work.
    if not moved:
        raise OSError(f"{source} could not be moved to {target}")


def remove_folder(path: str, *, first: str) -> None:
    """Removes a folder of files, the file `first` before the others."""
    for name in sorted(g_pathmgr.ls(path), key=lambda name: name != first):
        g_pathmgr.rm(f"{path}/{name}")
    # A folder of an object store is gone with its files.
    if os.path.isdir(path):
        os.rmdir(path)
