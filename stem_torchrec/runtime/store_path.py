"""A path in an object store, with the operations of `pathlib.Path` that a run folder needs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stem_torchrec.runtime.file_systems import g_pathmgr


class StorePath:
    """A file or folder by its URL, through iopath. `Path` would make a local `s3:/bucket` of it.

    A file appears whole when it is closed; there are no renames, and folders need not be made.

    Example::

        StorePath("s3://bucket/runs") / "a" / "config.yaml"  # s3://bucket/runs/a/config.yaml
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def __str__(self) -> str:
        return self._url

    def __repr__(self) -> str:
        return f"StorePath({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(self._url)

    def __truediv__(self, name: str) -> "StorePath":
        return StorePath(f"{self._url}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self._url.rpartition("/")[2]

    @property
    def parent(self) -> "StorePath":
        """The folder that it is in."""
        return StorePath(self._url.rpartition("/")[0])

    def with_name(self, name: str) -> "StorePath":
        """A path beside it."""
        return self.parent / name

    def exists(self) -> bool:
        """Whether it is a file or folder."""
        return bool(g_pathmgr.exists(self._url))

    def is_file(self) -> bool:
        """Whether it is a file."""
        return bool(g_pathmgr.isfile(self._url))

    def is_dir(self) -> bool:
        """Whether it is a folder, which has files."""
        return bool(g_pathmgr.isdir(self._url))

    def iterdir(self) -> Iterator["StorePath"]:
        """The files and folders in it."""
        return (self / name for name in g_pathmgr.ls(self._url))

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder comes with its first file."""

    def open(self, mode: str = "r") -> Any:
        """Opens the file."""
        return g_pathmgr.open(self._url, mode)

    def read_text(self) -> str:
        """The text of the file."""
        with self.open() as file:
            return str(file.read())

    def write_text(self, text: str) -> int:
        """Writes the file."""
        with self.open("w") as file:
            return int(file.write(text))

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the file."""
        if not missing_ok or self.exists():
            g_pathmgr.rm(self._url)


AnyPath = Path | StorePath
"""A local path, or one in a store."""


def path_of(text: str) -> AnyPath:
    """The path that an option names, which has been checked."""
    return StorePath(text) if "://" in text else Path(text)
