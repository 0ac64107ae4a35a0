"""A folder of deltas, `000000/`, `000001/` and so on, each with its manifest.json, which is written last.

A folder without manifest.json is not a delta: it is being written or removed, or that was interrupted.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stem_torchrec.config.delta import DeltaConfig, RowFormat, TablePrecision
from stem_torchrec.config.formats import FormatError, with_format, without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.runtime.errors import DamagedError, UserError, reason_of
from stem_torchrec.runtime.store_path import AnyPath, path_of

MANIFEST_FILE = "manifest.json"
DELTA_FORMAT = 1
"""Format version of a delta."""
_CHECKSUM = "sha256"


@dataclass(frozen=True)
class DeltaTable:
    """A table of one group and feature."""

    name: str
    """As `like/uid`."""
    rows: int
    columns: int
    packed_in: str = ""
    """The table of several groups that has its columns, as `finish+like+shared/uid`, in the packed layout."""
    packed_at: int = 0
    """The column of that table that it starts with."""


@dataclass(frozen=True)
class Piece:
    """Rows of a table in one file: all columns, or some where the table was cut by columns."""

    table: str
    file: str
    column: int
    """The table's column that it starts with."""
    columns: int
    rows: int
    """How many it has."""
    first: int | None = None
    """The first of them if they follow each other; None if the file lists them."""


@dataclass(frozen=True)
class DeltaFile:
    """A file of the delta."""

    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class Vocabulary:
    """The values behind the ids of a feature, up to now."""

    entries: int
    sha256: str
    """Of the values in their order, as `data.vocabulary_values.fingerprint` has it."""
    file: str = ""
    """The delta's file of those that came since the delta before; empty if none came."""
    first: int = 0
    """The place of the first of them among all; 0 where they replace the earlier ones."""


@dataclass(frozen=True)
class DeltaManifest:
    """The contents of manifest.json."""

    chain: str
    """What all deltas of a folder have in common, drawn at random."""
    number: int
    full: bool
    """Whether it has all rows; number 0 has."""
    base: str
    """SHA-256 of the manifest before; empty for number 0."""
    run: str
    """The run folder."""
    run_id: str
    """Of the run, as start.json has it: a folder may hold one run after another."""
    step: int
    """Steps that the run had made."""
    precision: TablePrecision
    row_format: RowFormat
    prefix: str
    """What the names of tables begin with in a state dict."""
    tables: tuple[DeltaTable, ...]
    """All tables, changed or not."""
    pieces: tuple[Piece, ...]
    dense: str
    """The file of the weights that are in no table."""
    log: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the small files of run and log, by name; those that changed are files of the delta."""
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    files: Mapping[str, DeltaFile] = field(default_factory=dict)

    @property
    def changed_rows(self) -> int:
        """Rows of tables in the delta, a row of a table that was cut by columns once."""
        return sum(piece.rows for piece in self.pieces if piece.column == 0)


@dataclass(frozen=True)
class Delta:
    """A complete delta on disk."""

    folder: AnyPath
    manifest: DeltaManifest
    sha256: str
    """Of its manifest.json, which has the checksums of its files."""

    def read(self, name: str) -> bytes:
        """The bytes of one of its files; raises DamagedError for one that is missing or was changed."""
        path, entry = self.folder / name, self.manifest.files[name]
        try:
            with path.open("rb") as file:
                content = bytes(file.read())
        except OSError as error:
            raise DamagedError(f"{path} cannot be read ({reason_of(error)}); copy the delta again.") from error
        if len(content) != entry.size or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise DamagedError(
                f"{path} is damaged (its checksum is not that of manifest.json); copy delta {self.manifest.number} "
                "again."
            )
        return content


def deltas_folder(config: DeltaConfig, run: AnyPath) -> AnyPath:
    """The folder of the deltas of the run in the folder `run`."""
    return run / "deltas" if config.out is None else path_of(config.out)


def write_file(path: AnyPath, parts: Sequence[bytes | memoryview]) -> DeltaFile:
    """Writes a file of a delta, given in parts; returns what its manifest tells of it."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
    return DeltaFile(sum(len(part) for part in parts), digest.hexdigest())


def delta_path(folder: AnyPath, number: int) -> AnyPath:
    """The folder of a delta, as `deltas/000012`."""
    return folder / f"{number:06d}"


def all_numbers(folder: AnyPath) -> list[int]:
    """Numbers of the deltas in a folder, complete or not, in their order; [] if the folder does not exist."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if len(name) >= 6 and name.isdecimal())


def complete_numbers(folder: AnyPath) -> list[int]:
    """Numbers of the complete deltas in a folder, in their order; [] if the folder does not exist."""
    return [number for number in all_numbers(folder) if (delta_path(folder, number) / MANIFEST_FILE).exists()]


def manifest_text(manifest: DeltaManifest) -> str:
    """What manifest.json has: the manifest, the format version and a checksum of both."""
    content = with_format(to_dict(manifest), DELTA_FORMAT)
    return json.dumps({**content, _CHECKSUM: _checksum(content)}, indent=1) + "\n"


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_delta(folder: AnyPath) -> Delta:
    """Reads the manifest of the delta in `folder`.

    Raises UserError for a folder that is no delta, FormatError for a newer format, DamagedError for a damaged file.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise UserError(f"{folder} is no delta, as it has no {MANIFEST_FILE}; a run writes deltas with --delta.steps.")
    try:
        text = path.read_text()
        content = parse_json(text)
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError("it has no format")
        # Before the checksum, which a newer program may compute differently.
        fields = without_format(content, DELTA_FORMAT, str(path))
        if content.pop(_CHECKSUM, None) != _checksum(content):
            raise ValueError("it was changed: its checksum is another")
        manifest = from_dict(DeltaManifest, {name: value for name, value in fields.items() if name != _CHECKSUM})
    except FormatError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read ({reason_of(error)}); copy the delta again.") from error
    return Delta(folder, manifest, hashlib.sha256(text.encode()).hexdigest())


def newest_delta(folder: AnyPath) -> Delta | None:
    """The delta with the largest number; None if there is none. Raises as `read_delta` does."""
    numbers = complete_numbers(folder)
    return read_delta(delta_path(folder, numbers[-1])) if numbers else None


def pieces_by_file(pieces: Sequence[Piece]) -> dict[str, list[Piece]]:
    """The pieces of each file, in its order."""
    by_file: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_file.setdefault(piece.file, []).append(piece)
    return by_file
