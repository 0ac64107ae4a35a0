"""What a bundle has, in manifest.json: its files with their checksums, and what its program takes and returns."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stem_torchrec.config.delta import TablePrecision
from stem_torchrec.config.formats import FormatError, with_format, without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.data.schema import LabelKind
from stem_torchrec.runtime.errors import DamagedError, UserError, reason_of
from stem_torchrec.runtime.paths import write_json
from stem_torchrec.runtime.versions import installed_builds

MANIFEST_FILE = "manifest.json"
BUNDLE_FORMAT = 1
"""Format version of a bundle."""
PROGRAM_FILE = "model.pt2"
"""The program, by torch.export."""
COMPILED_FILE = "compiled.pt2"
"""The same program, compiled by AOTInductor for one kind of machine."""
TABLES_FILE = "tables.safetensors"
DELTA = "delta"
"""Key of the delta that the weights are at, in what a manifest tells of the run."""
_HASHED_TABLES = 2**30
"""Bytes of tables up to which loading reads them all for their checksum, in about a second."""


@dataclass(frozen=True)
class TableEntry:
    """A table, which the program takes as an input."""

    name: str
    feature: str
    rows: int
    columns: int
    """Width of an embedding."""


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle."""

    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class Machine:
    """What AOTInductor compiled for."""

    torch: str
    processor: str
    """The architecture, the vector instructions that torch uses, and a hash of all instructions of the processor."""
    name: str = field(default="", compare=False)
    """Of the processor, for people: two of one name may have other instructions, as in a virtual machine."""


@dataclass(frozen=True)
class Manifest:
    """The contents of manifest.json."""

    tasks: tuple[str, ...]
    """In the order of the predictions' columns."""
    arch: str
    precision: TablePrecision
    """Of the numbers in tables.safetensors."""
    tables: tuple[TableEntry, ...]
    """In the order in which the program takes them."""
    raw: bool
    """Whether rows have the columns of the raw log, which transforms.json turns into ids."""
    versions: dict[str, str]
    run: dict[str, Any]
    """The run of the weights: its folder, the checksums of its configuration and weights, and its best evaluation; once
    deltas were applied, its folder, its step and the delta."""
    files: dict[str, FileEntry] = field(default_factory=dict)
    compiled: Machine | None = None
    kinds: dict[str, LabelKind] = field(default_factory=dict)
    """What tasks predict that are not binary: of a number its expectation, of ordinal levels 0, 1, ... the expected
    level; the others predict probabilities."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes manifest.json. Raises UnwritableError."""
    content = to_dict(manifest)
    if not manifest.kinds:
        # Earlier versions refuse a field that they do not know.
        del content["kinds"]
    write_json(folder / MANIFEST_FILE, with_format(content, BUNDLE_FORMAT))


def read_manifest(folder: Path, *, verify: bool | None = None) -> Manifest:
    """Reads manifest.json and compares the other files with it.

    Args:
        folder: the bundle.
        verify: whether to read all bytes of the tables for their checksum; by default if they have up to 1 GiB. Their
            size is always compared, and the other files' checksums.

    Raises UserError for a folder that is no bundle, FormatError for a newer format, and DamagedError for a file that is
    missing or was changed.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise UserError(f"{folder} is no bundle, as it has no {MANIFEST_FILE}; stem-export writes one.")
    try:
        content = parse_json(path.read_bytes())
        if not isinstance(content, dict) or "format" not in content:
            raise ValueError("it has no format")
        manifest = from_dict(Manifest, without_format(content, BUNDLE_FORMAT, str(path)))
    except FormatError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read ({reason_of(error)}); export the bundle again.") from error
    for name, entry in manifest.files.items():
        _check_file(folder / name, entry, verify=verify)
    return manifest


def _check_file(path: Path, entry: FileEntry, *, verify: bool | None) -> None:
    if not path.is_file():
        raise DamagedError(f"{path} is missing; copy the bundle as a whole, or export it again.")
    size = path.stat().st_size
    if size != entry.size:
        raise DamagedError(
            f"{path} has {size} bytes, but {entry.size} when it was exported; copy the bundle again, or export it."
        )
    reads = path.name != TABLES_FILE or (size <= _HASHED_TABLES if verify is None else verify)
    if reads and checksum(path) != entry.sha256:
        raise DamagedError(f"{path} was changed after the export (its checksum differs); export the bundle again.")


def file_entries(folder: Path, names: Sequence[str]) -> dict[str, FileEntry]:
    """Sizes and checksums of files of a bundle."""
    return {name: FileEntry((folder / name).stat().st_size, checksum(folder / name)) for name in names}


def installed_versions() -> dict[str, str]:
    """The versions of this package, torch and torchrec, under whichever name they are installed.

    Example::

        installed_versions()  # {"stem_torchrec": "0.1.0", "torch": "2.13.0", "torchrec": "1.8.0"}
    """
    builds = installed_builds()
    # A build that pip does not know has only a folder.
    of_builds = {
        name: ", ".join(build.version or build.name for build in builds[name]) for name in ("torch", "torchrec")
    }
    return {"stem_torchrec": version("stem_torchrec"), **of_builds}


def checksum(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
