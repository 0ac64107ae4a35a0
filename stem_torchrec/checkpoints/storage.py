"""torch.distributed.checkpoint (DCP) on paths of iopath, local or remote."""

import os
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from io import BufferedWriter, BytesIO
from typing import IO, Any, cast
from zipfile import BadZipFile, ZipFile

import torch.distributed as dist
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystemBase
from torch.distributed.checkpoint.metadata import Metadata

from stem_torchrec.runtime.errors import DamagedError, UnwritableError, UserError, reason_of
from stem_torchrec.runtime.file_systems import g_pathmgr
from stem_torchrec.runtime.memory import is_out_of_memory
from stem_torchrec.runtime.paths import move

AnyPath = str | os.PathLike
"""A path, as DCP takes it."""
State = dict[str, Any]
"""Tensors by name, sharded and not, or dictionaries of them: what DCP saves and loads."""


class UncachedFile:
    """Writes a local file and leaves little of it in the page cache.

    Nobody reads a checkpoint from the page cache, where it displaces the log that is being read. Finding fresh pages
    for each gigabyte may also cost the trainer more time than writing it.

    Args:
        file: open for writing.
    """

    _MAX_CACHED = 64 * 2**20
    """Bytes of the file in the page cache."""

    def __init__(self, file: BufferedWriter) -> None:
        self._file, self._cached = file, 0

    def write(self, data: bytes | memoryview) -> int:
        """Writes all of `data`; returns its number of bytes."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), self._MAX_CACHED):
            self._cached += self._file.write(view[start : start + self._MAX_CACHED])
            if self._cached >= self._MAX_CACHED:
                self._file.flush()
                os.fdatasync(self._file.fileno())
                os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                self._cached = 0
        return len(view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class IoPathFileSystem(FileSystemBase):
    """A file system for DCP, by iopath's handlers."""

    @contextmanager
    def create_stream(self, path: AnyPath, mode: str) -> Generator[Any, None, None]:
        """Opens a file."""
        with g_pathmgr.open(str(path), mode) as stream:
            local = "w" in mode and isinstance(stream, BufferedWriter) and hasattr(os, "posix_fadvise")
            yield cast(IO[Any], UncachedFile(stream) if local else stream)

    def concat_path(self, path: AnyPath, suffix: str) -> str:
        """The path of a file in a folder."""
        return f"{path}/{suffix}"

    def init_path(self, path: AnyPath) -> str:
        """The path of a folder as iopath takes it."""
        return str(path).rstrip("/")

    def rename(self, path: AnyPath, new_path: AnyPath) -> None:
        """Renames a file."""
        move(str(path), str(new_path))

    def mkdir(self, path: AnyPath) -> None:
        """Creates a folder and its parents."""
        g_pathmgr.mkdirs(str(path))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: AnyPath) -> bool:
        """Accepts any path."""
        return True

    def exists(self, path: AnyPath) -> bool:
        """Whether a file or folder exists."""
        return bool(g_pathmgr.exists(str(path)))

    def rm_file(self, path: AnyPath) -> None:
        """Removes a file."""
        g_pathmgr.rm(str(path))


def writer_to(folder: str) -> FileSystemWriter:
    """A DCP writer of a checkpoint to `folder`, for `dcp.save(state, storage_writer=...)`."""
    # What a store has is written. DCP would ask the system to flush all its files.
    writer = FileSystemWriter(folder, sync_files="://" not in folder)
    writer.fs = IoPathFileSystem()  # type: ignore[assignment]
    writer.path = folder
    return writer


def reader_from(folder: str) -> FileSystemReader:
    """A DCP reader of a checkpoint from `folder`, for `dcp.load(state, storage_reader=...)`."""
    reader = FileSystemReader(folder)
    reader.fs = IoPathFileSystem()  # type: ignore[assignment]
    reader.path = folder
    return reader


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silences warnings of DCP and TorchRec about their own code, while weights are named, saved and loaded."""
    with warnings.catch_warnings():
        # Both still call functions that torch deprecates.
        warnings.simplefilter("ignore", FutureWarning)
        # DCP warns in each process that reads for itself.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def check_parts(folder: str, metadata: Metadata, *, part: int, parts: int) -> None:
    """Reads a share of a checkpoint, one tensor at a time, and compares the checksums that torch.save wrote.

    torch.load does not compare them, so a flipped bit would become part of a weight.

    Args:
        folder: of the checkpoint.
        metadata: of the checkpoint.
        part: number of the share, from 0.
        parts: number of shares.

    Raises OSError or zipfile.BadZipFile if a file differs from what was written.
    """
    for number, stored in enumerate(metadata.storage_data.values()):
        if number % parts == part:
            with g_pathmgr.open(f"{folder}/{stored.relative_path}", "rb") as file:
                file.seek(stored.offset)
                wrong = ZipFile(BytesIO(file.read(stored.length))).testzip()
            if wrong is not None:
                raise BadZipFile(f"{stored.relative_path} is not what was written there")


def error_of(folder: str, error: CheckpointException) -> Exception:
    """What to raise where the tensors of a folder cannot be read: what no rank has memory for is not damaged."""
    reason, _ = next(iter(error.failures.values()))
    if is_out_of_memory(reason):
        return MemoryError(str(reason))
    if isinstance(reason, UserError):
        return UserError(f"{folder} does not fit: {reason}")
    return DamagedError(f"{folder} cannot be read: {reason_of(reason)}")


def error_of_writing(folder: str, error: CheckpointException) -> Exception:
    """What to raise where tensors cannot be written to a folder: a rank without memory is not a disk without room."""
    reason, _ = next(iter(error.failures.values()))
    if is_out_of_memory(reason):
        return MemoryError(str(reason))
    return UnwritableError(f"{folder} cannot be written ({failure_of(error)})")


def failure_on_any_rank(failure: str | None, *, group: dist.ProcessGroup | None = None) -> str | None:
    """Returns the failure of the first rank that has one, the same on all ranks; all ranks call it."""
    failures: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure, group=group)
    return next((each for each in failures if each is not None), None)


def failure_of(error: BaseException) -> str:
    """The type and message of an error on one line; of an error of several ranks, that of the first."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {failure_of(cause)}"
    return f"{type(error).__name__}: {reason_of(error)}"
