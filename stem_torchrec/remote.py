"""What paths of iopath can do that not every handler of a file system offers."""

import os

from iopath.common.file_io import g_pathmgr


def move(source: str, target: str) -> None:
    """Gives a file another name in its folder; object stores, which cannot rename, copy it and remove the first."""
    try:
        g_pathmgr.mv(source, target)
    except NotImplementedError:
        g_pathmgr.copy(source, target, overwrite=True)
        g_pathmgr.rm(source)


def remove_folder(path: str, *, first: str = "") -> None:
    """Removes a folder of files, the file `first` before the others."""
    for name in sorted(g_pathmgr.ls(path), key=lambda name: name != first):
        g_pathmgr.rm(f"{path}/{name}")
    # A folder of an object store is gone with its files.
    if os.path.isdir(path):
        os.rmdir(path)
