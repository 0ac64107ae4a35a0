"""The Parquet files of a split: everything below its folder, or an error that names what would be left out."""

import os
import posixpath
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.file_systems import g_pathmgr

_SUFFIXES = (".parquet", ".pq")
"""Ends of the names of Parquet files, in letters of any case."""
_SKIPPED = (".", "_")
"""First characters of names that are left out: `_SUCCESS`, `_temporary`, `.part-0.parquet.crc`, `._part-0.parquet`."""


@dataclass(frozen=True)
class RowGroup:
    """A row group of a Parquet file: what is read at once."""

    path: str
    name: str
    """The path relative to the folder of the split."""
    index: int
    first_row: int
    """Row of the file that the row group starts with."""
    rows: int
    metadata: pq.FileMetaData
    """The file's footer, kept so that opening the file again does not parse it."""


def read_footers(folder: str) -> dict[str, pq.FileMetaData]:
    """The footers of all .parquet and .pq files below `folder`, in the order of their paths, which are relative to it.

    Reads folders inside it as well, such as the `day=1/` of Spark and Hive. Asks for nothing but the footer of a file
    with the name of a Parquet file.

    Raises UserError for a file that is truncated or has another name, and for a folder that links lead to twice.

    Example::

        read_footers("log/train")  # {"day=1/part-0.parquet": ..., "day=2/part-0.parquet": ...}
    """
    footers: dict[str, pq.FileMetaData] = {}
    folders, visited = [""], dict[str, str]()
    while folders:
        below = folders.pop()
        path = posixpath.join(folder, below).rstrip("/")
        # Links can lead back to a folder above, and then on without end.
        real = os.path.realpath(path)
        if real in visited:
            raise UserError(
                f"{path} and {visited[real]} are the same folder, whose rows would be read twice; remove the link."
            )
        visited[real] = path
        for name in _visible_names(path):
            relative = posixpath.join(below, name)
            footer = _read_footer(posixpath.join(folder, relative))
            if footer is None:
                folders.append(relative)
            else:
                footers[relative] = footer
    return dict(sorted(footers.items()))


def _visible_names(folder: str) -> list[str]:
    try:
        names = [name.strip("/") for name in g_pathmgr.ls(folder)]
    except OSError as error:
        raise UserError(f"{folder} cannot be listed ({reason_of(error)}).") from error
    # A store without folders may list the paths of all files below.
    return sorted(name for name in names if name and not any(part.startswith(_SKIPPED) for part in name.split("/")))


def _read_footer(path: str) -> pq.FileMetaData | None:
    """None for a folder."""
    is_parquet = path.lower().endswith(_SUFFIXES)
    # A pipe would wait for its writer. A remote path is none on this host, and a store has only files.
    if is_parquet and (os.path.isfile(path) or not os.path.exists(path)):
        try:
            with g_pathmgr.open(path, "rb") as file:
                return pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            # In a store, only this tells a folder from a file.
            if not g_pathmgr.isdir(path):
                raise UserError(f"{path} is not a whole Parquet file ({reason_of(error)}); write it again.") from error
    elif not g_pathmgr.isdir(path):
        raise UserError(
            f"{path} is not a .parquet or .pq file, and what it holds would be left out; write it as one, move it "
            "away, or begin its name with _ to leave it out."
        )
    return None
