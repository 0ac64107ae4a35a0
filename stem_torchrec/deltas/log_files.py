"""The small files of a run and its log that a delta ships where they changed: what is read beside the weights.

Names in a delta: `log.schema.json` for schema.json, `vocabulary.city.parquet` for vocabulary/city.parquet.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.data.new_log import VOCABULARY
from stem_torchrec.data.schema import SCHEMA_FILE
from stem_torchrec.data.vocabulary_values import fingerprint
from stem_torchrec.deltas.manifest import Delta, DeltaManifest, Vocabulary
from stem_torchrec.preparation.transforms import TRANSFORMS_FILE
from stem_torchrec.runtime.errors import DamagedError
from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.runtime.whole_file import whole_file

OF_RUN = ("config.yaml", SCHEMA_FILE, "calibration.json")
"""Files of a run folder, which rooms above this one write."""


@dataclass(frozen=True)
class ChangedFiles:
    """What goes into a delta, and what its manifest tells of all of them."""

    contents: Mapping[str, bytes] = field(default_factory=dict)
    """By name in the delta, of those that changed."""
    log: Mapping[str, str] = field(default_factory=dict)
    """See DeltaManifest, as for the other one."""
    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)


class LogFiles:
    """The files of a run and its log.

    Args:
        run: the run folder.
        log: the folder of its log; None if the log has no transforms.
    """

    def __init__(self, run: AnyPath, log: AnyPath | None) -> None:
        self._run, self._log = run, log
        self._seen: dict[str, tuple[tuple[int, ...], str]] = {}
        """By path of a local vocabulary: its file as it was read, and the fingerprint of its values."""

    def changed(self, before: DeltaManifest | None) -> ChangedFiles:
        """The files that differ from those of the delta `before`, all of them if that is None.

        Raises OSError for a file that cannot be read.
        """
        contents: dict[str, bytes] = {}
        sums: dict[str, str] = {}
        for path in [self._run / name for name in OF_RUN] + ([self._log / TRANSFORMS_FILE] if self._log else []):
            if not path.exists():
                continue
            content = _bytes_of(path)
            sums[path.name] = hashlib.sha256(content).hexdigest()
            if before is None or before.log.get(path.name) != sums[path.name]:
                contents[f"log.{path.name}"] = content
        vocabularies: dict[str, Vocabulary] = {}
        folder = self._log / VOCABULARY if self._log else None
        files: list[AnyPath] = [*folder.iterdir()] if folder is not None and folder.is_dir() else []
        for path in sorted(files, key=str):
            name = path.name.removesuffix(".parquet")
            entry, new = self._vocabulary(path, None if before is None else before.vocabularies.get(name))
            vocabularies[name] = entry
            if new is not None:
                contents[entry.file] = new
        return ChangedFiles(contents, sums, vocabularies)

    def _vocabulary(self, path: AnyPath, before: Vocabulary | None) -> tuple[Vocabulary, bytes | None]:
        """A vocabulary, and its new entries if it has some; it is read again only where its file is another."""
        state, known = _state_of(path), self._seen.get(str(path))
        if before is not None and state is not None and known == (state, before.sha256):
            return Vocabulary(before.entries, before.sha256), None
        entry, new = _vocabulary(path, before)
        if state is not None:
            self._seen[str(path)] = state, entry.sha256
        return entry, new


def _vocabulary(path: AnyPath, before: Vocabulary | None) -> tuple[Vocabulary, bytes | None]:
    """A vocabulary, and a Parquet file of its new entries, if any; of all where the earlier ones are not its first."""
    table = pq.read_table(BytesIO(_bytes_of(path)))
    values, first = table["value"].combine_chunks(), 0
    if before is not None and fingerprint(values, before.entries) == before.sha256:
        first = before.entries
    if before is not None and first == len(values):
        return Vocabulary(len(values), before.sha256), None
    sink = BytesIO()
    pq.write_table(table.slice(first), sink)
    file = f"{VOCABULARY}.{path.name}"
    return Vocabulary(len(values), fingerprint(values, len(values)), file, first), sink.getvalue()


def _state_of(path: AnyPath) -> tuple[int, ...] | None:
    """What changes with the contents of a local file, as logs are written: whole, under another name first."""
    if not isinstance(path, Path):
        return None
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _bytes_of(path: AnyPath) -> bytes:
    with path.open("rb") as file:
        return bytes(file.read())


def write_log_file(path: Path, delta: Delta) -> None:
    """Replaces a file of a copy, as schema.json, if the delta has a new one. Raises DamagedError or OSError."""
    name = f"log.{path.name}"
    if name in delta.manifest.files:
        with whole_file(path) as new:
            new.write_bytes(delta.read(name))


def write_vocabulary(path: Path, delta: Delta) -> None:
    """Adds the new entries of a delta to vocabulary/NAME.parquet of a copy, if it has some.

    Doing it again changes nothing. Raises DamagedError where the earlier entries are not those of the delta before.
    """
    entry = delta.manifest.vocabularies.get(path.name.removesuffix(".parquet"))
    if entry is None or not entry.file:
        return
    table = pq.read_table(BytesIO(delta.read(entry.file)))
    if entry.first:
        # The engine of the new entries may mark other columns as without nulls.
        table = pa.concat_tables([pq.read_table(path).slice(0, entry.first), table], promote_options="default")
    if fingerprint(table["value"].combine_chunks(), len(table)) != entry.sha256:
        raise DamagedError(
            f"{path} does not have the {entry.first:,} entries that delta {delta.manifest.number} adds to; give "
            "another --to, which begins anew."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as new:
        pq.write_table(table, new)
