"""Applies the deltas that a run ships to a copy of the run or to a bundle."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from stem_torchrec.config.path_fields import with_paths
from stem_torchrec.deltas.chain import missing_deltas
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.path_options import InputFolder, LocalOutput
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.serving.manifest import PROGRAM_FILE, TABLES_FILE, read_manifest
from stem_torchrec.serving.patch_bundle import applied_to_bundle, apply_to_bundle


@dataclass(frozen=True)
class ApplyConfig:
    """Which deltas to apply, and to what."""

    delta: InputFolder = ""
    """The folder of deltas that training writes, --delta.out or RUN/deltas, local or in a store; or one delta in it."""
    to: LocalOutput = ""
    """A copy of the run, made anew if it does not exist, or a bundle of stem-export."""
    until: Annotated[int, Interval(ge=0, le=10**9)] | None = None
    """The last delta to apply; by default the newest."""
    take_over: bool = False
    """Takes the copy or bundle from another process that applies deltas to it."""


def apply_deltas(config: ApplyConfig) -> int:
    """Applies all deltas that `config.to` lacks, in their order; returns their number.

    Raises UserError for a folder that is neither a copy nor a bundle, as `missing_deltas` does, and for rows in a
    precision that it does not take; OSError if it cannot be written. It then is as it was before.
    """
    if not config.delta or not config.to:
        raise UserError(
            "--delta or --to is missing; give the deltas, and what to apply them to: --delta RUN/deltas --to COPY."
        )
    config = with_paths(config)
    source, target = path_of(config.delta), Path(config.to)
    if (target / TABLES_FILE).exists() or (target / PROGRAM_FILE).exists():
        manifest = read_manifest(target)
        deltas = missing_deltas(source, applied_to_bundle(manifest), until=config.until, target=str(target))
        if deltas:
            apply_to_bundle(target, manifest, deltas, take_over=config.take_over)
    else:
        # Copies are read by training, so they need TorchRec, which a machine that only scores lacks.
        from stem_torchrec.deltas.copied_run import applied_to_copy, apply_to_copy

        with FolderLock(take_over=config.take_over) as lock:
            lock.check(str(target), other="--to")
            applied = applied_to_copy(target)
            deltas = missing_deltas(source, applied, until=config.until, target=str(target))
            if deltas:
                lock.take(str(target), other="--to")
                if applied is not None and applied_to_copy(target) != applied:
                    raise UserError(f"{target} was changed by another process meanwhile; run the same command again.")
                apply_to_copy(target, deltas)
    if not deltas:
        log_rank0(f"{target} has all deltas of {source} already")
    else:
        last = deltas[-1].manifest
        log_rank0(f"{target} is at delta {last.number}, step {last.step} of {last.run}; applied {len(deltas)}")
    return len(deltas)
