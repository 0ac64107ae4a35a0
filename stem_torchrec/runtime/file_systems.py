"""Object stores and HDFS for iopath: each scheme opens through fsspec, with the package that its file system needs.

Import `g_pathmgr` from here: then the handlers are registered in every process, also in one that is spawned. A handler
that the process has registered before, for the same scheme, stays.
"""

import errno
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from types import TracebackType
from typing import Any, cast

import fsspec
from fsspec import AbstractFileSystem
from iopath.common.file_io import g_pathmgr

from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.internals.path_handlers import StoreHandler

__all__ = ["STORES", "StoreFile", "check_package", "g_pathmgr"]

STORES: Mapping[str, tuple[str, str]] = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "abfs": ("adlfs", "azure"),
    "abfss": ("adlfs", "azure"),
    "az": ("adlfs", "azure"),
    "hdfs": ("pyarrow", ""),
}
"""The package that opens a scheme, and the extra of this project that installs it."""
_READ_BLOCK = 4 * 2**20
"""Bytes that are read ahead. The default of s3fs is 50 MB, much more than a row group that is read out of order."""
_NUMBERS = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, FileExistsError: errno.EEXIST}
"""What s3fs raises without a number."""


def check_package(path: str) -> None:
    """Raises UserError if the package for the scheme of `path` is not installed."""
    package, extra = STORES[path.partition("://")[0]]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{path} needs {package}, which is not installed; run: pip install 'stem_torchrec[{extra}]'")


class FsspecOperations:
    """The operations of stores, through fsspec.

    Nobody makes folders: they come with their files, and s3fs would try to create the bucket. An error of a store,
    whatever its library calls it, is raised as OSError with the path.
    """

    def open(self, path: str, mode: str) -> Any:
        """Opens a file; see StoreFile."""
        with _file_system(path) as (store, key):
            block = {"block_size": _READ_BLOCK} if "r" in mode else {}
            file = StoreFile(store.open(key, mode.replace("t", "").replace("b", "") + "b", **block), path)
        return file if "b" in mode else _StoreText(file, encoding="utf-8")

    def type_of(self, path: str) -> str | None:
        """`file` or `directory`; None for what does not exist."""
        try:
            # fsspec's own questions, such as isfile, answer no where a store fails.
            with _file_system(path) as (store, key):
                return str(store.info(key)["type"])
        except FileNotFoundError:
            return None

    def names_in(self, path: str) -> list[str]:
        """The names of the files and folders in a folder."""
        with _file_system(path) as (store, key):
            names = {name.rstrip("/") for name in store.ls(key, detail=False)}
            # Some programs mark a folder by an empty file of its name.
            return sorted(name.rpartition("/")[2] for name in names - {key.rstrip("/")})

    def remove(self, path: str) -> None:
        """Removes a file."""
        with _file_system(path) as (store, key):
            store.rm_file(key)

    def copy(self, source: str, target: str) -> None:
        """Copies a file over another."""
        with _file_system(source) as (store, key), _file_system(target) as (_, target_key):
            store.cp_file(key, target_key)


@contextmanager
def _file_system(path: str) -> Iterator[tuple[AbstractFileSystem, str]]:
    """The file system of a path, and the path in it; an error of the block becomes an OSError.

    fsspec keeps the file systems of each process apart, as one that was made before a fork does not work in the child.
    """
    check_package(path)
    with errors_of_store(path):
        # Listings that were kept would be those from before another process wrote.
        yield fsspec.url_to_fs(path, use_listings_cache=False)


@contextmanager
def errors_of_store(path: str) -> Iterator[None]:
    """Raises what a store raises as an OSError with the path and the system's number of the error."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        number = number or next((each for kind, each in _NUMBERS.items() if isinstance(error, kind)), errno.EIO)
        raise OSError(number, getattr(error, "strerror", None) or reason_of(error), path) from error


class StoreFile:
    """A binary file of a store, which appears when it is closed, but not if the `with` block ends with an error.

    Args:
        file: of fsspec.
        path: for errors.
    """

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._file, name)
        return _with_path(value, self._path) if callable(value) else value

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._file)

    def __enter__(self) -> "StoreFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None or not self._file.writable():
            self.close()
            return
        # The error of the block counts, whether or not the store lets go of what was sent.
        with suppress(Exception):
            if hasattr(self._file, "discard"):
                self._file.discard()
            else:
                # HDFS shows a file while it is written.
                self._file.close()
                g_pathmgr.rm(self._path)
        self._file.closed = True


class _StoreText(io.TextIOWrapper):
    """A text file of a store; see StoreFile."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            # The text that waits goes to the file first, which then throws it away.
            cast(StoreFile, self.detach()).__exit__(kind, error, traceback)


def _with_path(call: Callable[..., Any], path: str) -> Callable[..., Any]:
    @wraps(call)
    def with_path(*args: Any, **kwargs: Any) -> Any:
        with errors_of_store(path):
            return call(*args, **kwargs)

    return with_path


# It logs with a traceback what it then raises.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
for _scheme in STORES:
    with suppress(KeyError):
        g_pathmgr.register_handler(StoreHandler(f"{_scheme}://", FsspecOperations()), allow_override=False)
