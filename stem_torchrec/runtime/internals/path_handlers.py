"""Which file system iopath has for a path."""

from iopath.common.file_io import PathHandler, PathManager


def handler_of(manager: PathManager, path: str) -> PathHandler | None:
    """The handler whose prefix `path` has; None where iopath takes the path for a local one."""
    return next((handler for prefix, handler in manager._path_handlers.items() if path.startswith(prefix)), None)
