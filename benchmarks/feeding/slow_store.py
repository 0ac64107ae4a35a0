"""A store that answers each request after a while: local files as `slow://...`, read ahead as those of a store are."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile
from iopath.common.file_io import PathHandler

from stem_torchrec.runtime.file_systems import g_pathmgr

_PREFIX = "slow://"
_BLOCK = 4 * 2**20
"""Bytes that are read ahead, as in `runtime/file_systems.py`."""


class SlowStore(PathHandler):
    """Serves local files; a request for their bytes, their size or their names takes `latency` seconds.

    Args:
        latency: seconds.
    """

    def __init__(self, latency: float) -> None:
        super().__init__()
        self.latency = latency
        self.requests = 0
        """Requests of this process so far."""

    def answer(self, path: str) -> str:
        """The local path, after the latency."""
        self.requests += 1
        sleep(self.latency)
        return path.removeprefix(_PREFIX)

    def _get_supported_prefixes(self) -> list[str]:
        return [_PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> Any:
        local = self.answer(path)
        return _SlowFile(self, local) if "b" in mode else open(local, mode)

    def _isfile(self, path: str, **_: Any) -> bool:
        return os.path.isfile(self.answer(path))

    def _isdir(self, path: str, **_: Any) -> bool:
        return os.path.isdir(self.answer(path))

    def _ls(self, path: str, **_: Any) -> list[str]:
        return os.listdir(self.answer(path))


class _SlowFile(AbstractBufferedFile):
    def __init__(self, store: SlowStore, path: str) -> None:
        self._store = store
        super().__init__(AbstractFileSystem(), path, "rb", block_size=_BLOCK, size=os.path.getsize(path))

    def _fetch_range(self, start: int, end: int) -> bytes:
        with open(self._store.answer(self.path), "rb") as file:
            file.seek(start)
            return file.read(end - start)


@contextmanager
def slow_store(folder: str, latency: float) -> Iterator[str]:
    """The path of a local folder in a slow store, also in processes that are forked; without latency, the folder."""
    if latency:
        g_pathmgr.register_handler(SlowStore(latency), allow_override=True)
    yield f"{_PREFIX}{os.path.abspath(folder)}" if latency else folder
