"""iopath's handlers of paths: which one a path has, and one that passes each operation on under a public name."""

from typing import Any, Protocol

from iopath.common.file_io import PathHandler, PathManager


def handler_of(manager: PathManager, path: str) -> PathHandler | None:
    """The handler whose prefix `path` has; None where iopath takes the path for a local one."""
    return next((handler for prefix, handler in manager._path_handlers.items() if path.startswith(prefix)), None)


class Operations(Protocol):
    """What a handler needs of a file system; each operation takes whole paths."""

    def open(self, path: str, mode: str) -> Any:
        """Opens a file."""

    def type_of(self, path: str) -> str | None:
        """`file` or `directory`; None for what does not exist."""

    def names_in(self, path: str) -> list[str]:
        """The names of the files and folders in a folder."""

    def remove(self, path: str) -> None:
        """Removes a file."""

    def copy(self, source: str, target: str) -> None:
        """Copies a file over another."""


class StoreHandler(PathHandler):
    """The paths of one prefix, in a file system without folders of its own: one begins with its first file.

    It cannot rename, so `mv` raises NotImplementedError.
    """

    def __init__(self, prefix: str, operations: Operations) -> None:
        super().__init__()
        self._prefix, self._operations = prefix, operations

    def _get_supported_prefixes(self) -> list[str]:
        return [self._prefix]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        self._check_kwargs(kwargs)
        return self._operations.open(path, mode)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return self._operations.type_of(path) is not None

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._operations.type_of(path) == "file"

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return self._operations.type_of(path) == "directory"

    def _ls(self, path: str, **kwargs: Any) -> list[str]:
        return self._operations.names_in(path)

    def _mkdirs(self, path: str, **kwargs: Any) -> None:
        """Does nothing."""

    def _rm(self, path: str, **kwargs: Any) -> None:
        self._operations.remove(path)

    def _copy(self, src_path: str, dst_path: str, overwrite: bool = False, **kwargs: Any) -> bool:
        self._operations.copy(src_path, dst_path)
        return True
