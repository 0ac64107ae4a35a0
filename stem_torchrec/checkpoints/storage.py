"""torch.distributed.checkpoint on the paths of iopath, local or remote."""

import os
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from io import BufferedWriter, BytesIO
from typing import IO, Any, cast
from zipfile import BadZipFile, ZipFile

import torch.distributed as dist
from iopath.common.file_io import g_pathmgr
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemBase
from torch.distributed.checkpoint.metadata import Metadata

from stem_torchrec.runtime.errors import reason_of
from stem_torchrec.runtime.paths import move

AnyPath = str | os.PathLike
"""What DCP takes for a path."""
State = dict[str, Any]
"""What DCP saves and loads: tensors, sharded and not, by name, and dictionaries of them."""


class UncachedFile:
    """Writes a local file and leaves little of it in the page cache.

    What a checkpoint puts there nobody reads, and it pushes out the log that is being read. Where a kernel has to find
    fresh pages for each gigabyte, that also takes more of the trainer's time than the writing itself.

    Args:
        file: open for writing.
    """

    _MOST = 64 * 2**20
    """Bytes of it in the page cache."""

    def __init__(self, file: BufferedWriter) -> None:
        self._file, self._cached = file, 0

    def write(self, data: bytes | memoryview) -> int:
        """Writes all of `data`; returns its number of bytes."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), self._MOST):
            self._cached += self._file.write(view[start : start + self._MOST])
            if self._cached >= self._MOST:
                self._file.flush()
                os.fdatasync(self._file.fileno())
                os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                self._cached = 0
        return len(view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class IoPathFileSystem(FileSystemBase):
    """What DCP asks of a file system, by iopath's handlers."""

    @contextmanager
    def create_stream(self, path: AnyPath, mode: str) -> Generator[Any, None, None]:
        """Opens a file."""
        with g_pathmgr.open(str(path), mode) as stream:
            local = "w" in mode and isinstance(stream, BufferedWriter) and hasattr(os, "posix_fadvise")
            yield cast(IO[Any], UncachedFile(stream) if local else stream)

    def concat_path(self, path: AnyPath, suffix: str) -> str:
        """A file in a folder."""
        return f"{path}/{suffix}"

    def init_path(self, path: AnyPath) -> str:
        """A folder as iopath takes it."""
        return str(path).rstrip("/")

    def rename(self, path: AnyPath, new_path: AnyPath) -> None:
        """Gives a file another name."""
        move(str(path), str(new_path))

    def mkdir(self, path: AnyPath) -> None:
        """Makes a folder, and those above it."""
        g_pathmgr.mkdirs(str(path))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: AnyPath) -> bool:
        """Any path may hold checkpoints."""
        return True

    def exists(self, path: AnyPath) -> bool:
        """Whether there is a file or folder."""
        return bool(g_pathmgr.exists(str(path)))

    def rm_file(self, path: AnyPath) -> None:
        """Removes a file."""
        g_pathmgr.rm(str(path))


def writer_to(folder: str) -> FileSystemWriter:
    """Writes a checkpoint to `folder`."""
    writer = FileSystemWriter(folder)
    writer.fs = IoPathFileSystem()  # type: ignore[assignment]
    writer.path = folder
    return writer


def reader_from(folder: str) -> FileSystemReader:
    """Reads a checkpoint from `folder`."""
    reader = FileSystemReader(folder)
    reader.fs = IoPathFileSystem()  # type: ignore[assignment]
    reader.path = folder
    return reader


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silences what DCP and TorchRec warn of inside themselves while weights are named, saved and loaded."""
    with warnings.catch_warnings():
        # Both still call what torch deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        # DCP says so of each process that reads for itself.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def check_parts(folder: str, metadata: Metadata, *, part: int, parts: int) -> None:
    """Reads a share of a checkpoint, one tensor at a time, and compares the checksums that torch.save has kept with it.

    torch.load does not: it would take a flipped bit for a weight.

    Args:
        folder: the checkpoint.
        metadata: its own.
        part: which share, from 0.
        parts: how many shares there are.

    Raises OSError or zipfile.BadZipFile for a file that is not what was written.
    """
    for number, stored in enumerate(metadata.storage_data.values()):
        if number % parts == part:
            with g_pathmgr.open(f"{folder}/{stored.relative_path}", "rb") as file:
                file.seek(stored.offset)
                wrong = ZipFile(BytesIO(file.read(stored.length))).testzip()
            if wrong is not None:
                raise BadZipFile(f"{stored.relative_path} is not what was written there")


def failure_on_any_rank(failure: str | None, *, group: dist.ProcessGroup | None = None) -> str | None:
    """What the first rank on which something failed says of it, on all ranks, which all call it."""
    failures: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure, group=group)
    return next((said for said in failures if said is not None), None)


def failure_of(error: BaseException) -> str:
    """What failed, on one line; of a checkpoint's ranks the first to fail."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {failure_of(cause)}"
    return f"{type(error).__name__}: {reason_of(error)}"
