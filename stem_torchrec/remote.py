"""What paths of iopath can do that not every handler of a file system offers."""

from iopath.common.file_io import g_pathmgr


def move(source: str, target: str) -> None:
    """Gives a file another name in its folder; object stores, which cannot rename, copy it and remove the first."""
    try:
        g_pathmgr.mv(source, target)
    except NotImplementedError:
        g_pathmgr.copy(source, target, overwrite=True)
        g_pathmgr.rm(source)
