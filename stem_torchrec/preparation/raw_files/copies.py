"""Copies of files that an engine does not read itself: of another encoding or packing, or behind http."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from stem_torchrec.preparation.raw_files.csv_text import decoded, is_utf8, open_bytes
from stem_torchrec.preparation.specs.spec import Source
from stem_torchrec.runtime.whole_file import whole_file

UNREAD = (".bz2", ".xz")
"""Packings that DuckDB has no code for."""
_CHUNK = 2**20


def readable(files: Sequence[str], source: Source, folder: Path, *, unread: tuple[str, ...] = UNREAD) -> dict[str, str]:
    """The files that an engine reads in the place of the files of a source, in their order, with the names of these.

    Args:
        files: of the source.
        source: with their encoding.
        folder: for copies, which a later call finds there.
        unread: ends of the names of packed files that the engine does not unpack.

    Example::

        readable(["a.csv", "b.csv.bz2"], source, folder)  # {"a.csv": "a.csv", "FOLDER/3a.../b.csv": "b.csv.bz2"}
    """
    recodes = source.type == "csv" and not is_utf8(source.encoding)
    paths = {}
    for file in files:
        packed = file.lower().endswith(unread)
        if not (recodes or packed or file.startswith(("http://", "https://"))):
            paths[file] = file
            continue
        name = file.rpartition("/")[2]
        # A copy that is recoded is unpacked as well.
        name = os.path.splitext(name)[0] if packed else f"{name}.csv" if recodes else name
        partitions = [part for part in file.split("/")[:-1] if "=" in part]
        # Of another source, or another folder, a file may have the same name.
        own = hashlib.sha256(f"{source.encoding} {file}".encode()).hexdigest()[:16]
        copy = folder.joinpath(own, *partitions, name)
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            _copy(file, copy, source.encoding if recodes else None)
        paths[str(copy)] = file
    return paths


def _copy(file: str, copy: Path, encoding: str | None) -> None:
    with whole_file(copy) as new, new.open("wb") as output:
        if encoding is not None:
            for text in decoded(file, encoding):
                output.write(text.encode("utf-8", "surrogatepass"))
            return
        with open_bytes(file) as input_:
            while chunk := input_.read(_CHUNK):
                output.write(chunk)
