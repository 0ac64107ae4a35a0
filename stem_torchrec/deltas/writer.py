"""Writes deltas while training goes on: what was copied at a pause is written by a thread of each rank."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from secrets import token_hex
from typing import TypeVar

import torch.distributed as dist
from safetensors.torch import save
from torch import Tensor

from stem_torchrec.checkpoints.saver import Failures
from stem_torchrec.checkpoints.storage import failure_of, failure_on_any_rank
from stem_torchrec.config.delta import DeltaConfig
from stem_torchrec.deltas.kept import KeptDeltas, make_empty
from stem_torchrec.deltas.log_files import LogFiles
from stem_torchrec.deltas.manifest import (
    MANIFEST_FILE,
    Delta,
    DeltaFile,
    DeltaManifest,
    DeltaTable,
    Piece,
    delta_path,
    manifest_text,
    newest_delta,
    write_file,
)
from stem_torchrec.deltas.row_files import Rows, encode, in_files, quantized
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.paths import remove_tree, write_text
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import AnyPath

T = TypeVar("T")

_DENSE = "dense.safetensors"


@dataclass(frozen=True)
class Changes:
    """What a delta is made of, in host memory."""

    step: int
    full: bool
    """Whether all rows of all tables are in it."""
    rows: Sequence[Rows]
    """Those that this rank ships, in fp32."""
    dense: Mapping[str, Tensor]
    """The weights that are in no table; rank 0 writes them."""
    tables: tuple[DeltaTable, ...]
    prefix: str


@dataclass(frozen=True)
class Written:
    """The files that a rank has written."""

    pieces: Sequence[Piece]
    files: Mapping[str, DeltaFile]


class DeltaWriter:
    """Writes the deltas of a run to a folder, one at a time; all ranks make the same calls.

    A reader finds a complete delta or none. If one cannot be written, the failure is counted and printed, the earlier
    deltas stay, and the next one has the rows of both.

    Args:
        config: format and precision.
        folder: of the deltas.
        run: the run folder.
        log: the folder of the log whose transforms are shipped; None if it has none.
        run_id: of the run.
        max_failures: deltas in a row that may fail.
        timeout: seconds that ranks wait for each other while they write.
    """

    def __init__(
        self, config: DeltaConfig, folder: AnyPath, run: AnyPath, log: AnyPath | None, *, run_id: str,
        max_failures: int, timeout: float,
    ) -> None:  # fmt: skip
        self.failures = Failures(max_failures, "give another --delta.out")
        self.last: Delta | None = from_first_rank(lambda: newest_delta(folder))
        """The newest complete delta."""
        self.kept = KeptDeltas(folder, config.keep)
        self._config, self._folder, self._run, self._run_id = config, folder, run, run_id
        self._log_files = LogFiles(run, log)
        self._published: Delta | None = None  # Rank 0 has it.
        self._writing: Future[str | None] | None = None
        self._writes_all = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="delta")
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        """For the thread, and for the caller while nothing is being written."""

    @property
    def chain(self) -> str:
        """What the deltas of the folder have in common; empty before the first."""
        return "" if self.last is None else self.last.manifest.chain

    @property
    def number(self) -> int:
        """The number of the newest complete delta; -1 before the first."""
        return -1 if self.last is None else self.last.manifest.number

    def start(self, changes: Changes) -> None:
        """Starts to write a delta; the one before has been waited for."""
        assert self._writing is None, "wait() comes first"
        self._writing, self._writes_all = self._executor.submit(self._write, changes), changes.full

    def wait(self) -> bool:
        """Waits for the delta that is being written, if one is; returns whether it failed, the same on all ranks.

        Raises UnwritableError if too many in a row could not be written.
        """
        if self._writing is None:
            return False
        try:
            failure, self._writing = self._writing.result(), None
        except RuntimeError as error:
            raise UserError(
                f"a delta in {self._folder} could not be agreed on ({failure_of(error)}): a rank took longer than "
                "--train.timeout to write its part, or is gone; start again, or allow more time."
            ) from error
        if failure is None:
            self.last = from_first_rank(lambda: self._published)
            assert self.last is not None
            self.kept.add(self.last)
        self.failures.add(failure)
        return failure is not None

    @property
    def is_writing_all(self) -> bool:
        """Whether a delta with all rows has been started and not been waited for."""
        return self._writing is not None and self._writes_all

    def close(self) -> None:
        """Waits for the delta that is being written, and ends the thread and its connections."""
        self.wait()
        self._executor.shutdown()
        dist.destroy_process_group(self.group)

    def _write(self, changes: Changes) -> str | None:
        """Writes a delta; returns the failure in words, the same on all ranks, or None."""
        begin, number = time.perf_counter(), self.number + 1
        path = delta_path(self._folder, number)
        reason, _ = self._on_first_rank(lambda: make_empty(path))
        if reason is not None:
            return _failure(path, changes.step, reason)
        written = Written([], {})
        try:
            written = self._write_rows(path, changes.rows)
        # Training continues after any error of a store.
        except Exception as error:
            reason = failure_of(error)
        reason = failure_on_any_rank(reason, group=self.group)
        of_ranks: list[Written] = [written] * dist.get_world_size()
        dist.all_gather_object(of_ranks, written, group=self.group)
        if reason is None:
            reason, manifest = self._on_first_rank(lambda: self._publish(path, number, changes, of_ranks))
            if manifest is not None:
                log_rank0(_line(path, manifest, time.perf_counter() - begin))
        if reason is None:
            self._on_first_rank(lambda: self.kept.remove_old(number))
            return None
        self._on_first_rank(lambda: remove_tree(path))
        return _failure(path, changes.step, reason)

    def _write_rows(self, path: AnyPath, rows: Sequence[Rows]) -> Written:
        pieces: list[Piece] = []
        files: dict[str, DeltaFile] = {}
        precision, row_format, rank = self._config.precision, self._config.format, dist.get_rank()
        for i, block in enumerate(in_files(rows, row_format)):
            name = f"rows-{rank:05d}-{i:05d}.{row_format}"
            pieces += [
                Piece(each.table, name, each.column, each.weights.shape[1], len(each.numbers), each.first)
                for each in block
            ]
            in_precision = [
                Rows(each.table, each.column, each.numbers, quantized(each.weights, precision)) for each in block
            ]
            files[name] = write_file(path / name, encode(in_precision, row_format))
        return Written(pieces, files)

    def _publish(self, path: AnyPath, number: int, changes: Changes, of_ranks: Sequence[Written]) -> DeltaManifest:
        """Writes what rank 0 alone writes, the manifest last."""
        before = None if self.last is None else self.last.manifest
        # A full delta is one that a copy may begin with.
        beside = self._log_files.changed(None if changes.full else before)
        files = {name: entry for written in of_ranks for name, entry in written.files.items()}
        for name, content in {_DENSE: save(dict(changes.dense)), **beside.contents}.items():
            files[name] = write_file(path / name, [content])
        manifest = DeltaManifest(
            chain=self.chain or token_hex(8),
            number=number,
            full=changes.full,
            base="" if self.last is None else self.last.sha256,
            run=str(self._run),
            run_id=self._run_id,
            step=changes.step,
            precision=self._config.precision,
            row_format=self._config.format,
            prefix=changes.prefix,
            tables=changes.tables,
            pieces=tuple(piece for written in of_ranks for piece in written.pieces),
            dense=_DENSE,
            log=beside.log,
            vocabularies=beside.vocabularies,
            files=files,
        )
        text = manifest_text(manifest)
        write_text(path / MANIFEST_FILE, text)
        self._published = Delta(path, manifest, hashlib.sha256(text.encode()).hexdigest())
        return manifest

    def _on_first_rank(self, act: Callable[[], T]) -> tuple[str | None, T | None]:
        """The failure of rank 0 in words, the same on all ranks, and on rank 0 what `act` returned."""
        reason, result = None, None
        if dist.get_rank() == 0:
            try:
                result = act()
            except Exception as error:
                reason = failure_of(error)
        return failure_on_any_rank(reason, group=self.group), result


def _failure(path: AnyPath, step: int, reason: str) -> str:
    """Prints why a delta could not be written, and returns it."""
    failure = f"{path} cannot be written ({reason})"
    log_rank0(f"step {step}  {failure}")
    return failure


def _line(path: AnyPath, manifest: DeltaManifest, seconds: float) -> str:
    size = sum(entry.size for entry in manifest.files.values()) / 1e6
    all_rows = sum(table.rows for table in manifest.tables)
    return (
        f"step {manifest.step}  delta {manifest.number} written in {seconds:.1f} s: {manifest.changed_rows:,} of "
        f"{all_rows:,} rows, {size:.1f} MB: {path}"
    )
