"""Where a run begins: with fresh weights or with the state of another run; and its start.json."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from secrets import token_hex

from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from stem_torchrec.checkpoints.first_rows import tables_on_disk
from stem_torchrec.checkpoints.resume import candidates, own_checkpoints, progress_of
from stem_torchrec.config import StartConfig, TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import load_schema
from stem_torchrec.models.table import all_options
from stem_torchrec.runtime.errors import DamagedError, UserError
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import AnyPath, path_of
from stem_torchrec.starting.carry import carry
from stem_torchrec.starting.id_maps import IdMap, LogIds, map_ids
from stem_torchrec.starting.id_spaces import IdSpace, read_id_spaces
from stem_torchrec.starting.record import Ancestor, StartRecord, log_record, read_start, start_of
from stem_torchrec.starting.scales import note_of_other_scales, read_scales
from stem_torchrec.starting.source import BEST, StartSource, open_source
from stem_torchrec.tables import table_feature
from stem_torchrec.training.best_by_task import note_of_mean
from stem_torchrec.training.run_data import RunData


@dataclass(frozen=True)
class Beginning:
    """What a run begins with.

    Example::

        beginning = Beginning.open(config, path, data)     # UserError for a source that does not fit
        beginning = beginning.carry(model, optimizer, config, data)  # fills the model, and logs what is carried
        record = from_first_rank(lambda: beginning.record_in(folder, config))
        write_start(folder, record)  # by rank 0
    """

    record: StartRecord
    """Without the run's folders, which it may not have yet."""
    source: StartSource | None = None
    """None for a run that begins with fresh weights, and for one that resumes."""
    id_maps: Mapping[str, IdMap] = field(default_factory=dict)
    """By feature that the source has as well."""
    resumes_from: str | None = None
    """The newest checkpoint of a run that resumes."""

    @classmethod
    def open(cls, config: TrainConfig, path: str, data: RunData) -> "Beginning":
        """Opens the source of a run that has no checkpoint to resume from; all ranks call it before the model is built.

        Args:
            config: of the run.
            path: folder of its log.
            data: of the run.

        Raises UserError where `--start-from` names no state, or one that does not fit the log or the options.
        """
        checkpoints = from_first_rank(lambda: candidates(config.resume, own_checkpoints(config)))
        if checkpoints:
            return from_first_rank(lambda: cls(_resumed(config, path, data, checkpoints), resumes_from=checkpoints[0]))
        source = None if config.start_from is None else open_source(config)
        return from_first_rank(lambda: _new(config, path, data, source))

    def carry(
        self, model: DistributedModelParallel, optimizer: CombinedOptimizer, config: TrainConfig, data: RunData
    ) -> "Beginning":
        """Fills the model and its optimizer from the source, if there is one, and logs the table of what is carried.

        All ranks call it, before the first step. Raises UserError where the states do not fit.
        """
        if self.source is None:
            return self
        carried = carry(
            model, optimizer, self.source,
            config=config, columns=data.columns, id_maps=self.id_maps, new_rows=config.start.new_rows,
            gate_bias=config.start.gate_bias, tables_from=config.start.tables_from,
        )  # fmt: skip
        log_rank0(f"starting from {self.source.weights}\n{carried.format()}")
        same = {name: min(ids.old_rows, ids.new_rows) for name, ids in self.id_maps.items() if ids.rows is None}
        record = replace(self.record, carried=carried, table_steps=carried.table_steps, same_rows=same)
        return replace(self, record=record)

    def record_in(self, folder: AnyPath, config: TrainConfig) -> StartRecord:
        """The record of the run in its folder, with the id of the run that has begun there before; rank 0 calls it.

        Raises DamagedError for a start.json that is damaged.
        """
        elsewhere, before = config.checkpoint.folder, read_start(folder)
        return replace(
            self.record,
            run=_absolute(str(folder)),
            checkpoints=elsewhere and _absolute(elsewhere),
            id=self.record.id if before is None else before.id,
        )


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _resumed(config: TrainConfig, path: str, data: RunData, checkpoints: Sequence[str]) -> StartRecord:
    """The record of the run that resumes: its own, or that of the checkpoint."""
    own = read_start(path_of(config.output_dir)) if config.output_dir else None
    if own is not None:
        return own
    for checkpoint in checkpoints:
        try:
            progress = progress_of(checkpoint, all_options())
        except DamagedError:
            continue
        if progress.start:
            return start_of(dict(progress.start))
        break
    return _record(path, data, _ids(path, data))


def _new(config: TrainConfig, path: str, data: RunData, source: StartSource | None) -> Beginning:
    if source is None:
        if config.start != StartConfig():
            log_rank0("note: the run starts from no other one, so the --start options have no effect")
        return Beginning(_record(path, data, _ids(path, data)))
    ids = read_id_spaces(path, data.columns)
    old = _ids_of_source(source)
    maps = map_ids(old, LogIds(path, ids), name=source.name, hashed=config.start.hash_ids)
    unsure = [name for name in maps if "unknown" in (old.spaces[name].kind, ids[name].kind)]
    if unsure:
        log_rank0(
            f"note: without transforms.json of both logs only their number tells what the ids of {', '.join(unsure)} "
            "mean; each row continues the one of its number"
        )
    record = _record(path, data, ids)
    if source.name.endswith(BEST):
        run = path_of(source.name.removesuffix(BEST))
        if (note := note_of_mean(run, "this run starts from")) is not None:
            log_rank0(f"note: {note}")
    if (note := _note_of_new_tables(source)) is not None:
        log_rank0(f"note: {note}")
    if source.lineage is not None:
        of_source = source.lineage
        note = note_of_other_scales(
            of_source.scales, record.scales, run=source.name, old_log=of_source.log.path, log=path
        )
        if note is not None:
            log_rank0(f"note: {note}")
    started = Ancestor(None, source.weights, source.step)
    parents = (started,) if source.lineage is None else source.lineage.as_parent(source.weights, source.step)
    return Beginning(replace(record, parents=parents), source, maps)


def _note_of_new_tables(source: StartSource) -> str | None:
    """The note for tables that had begun anew with an epoch which was not over; None for others."""
    began_anew = source.config is not None and source.config.train.fresh_tables and source.epoch
    if not began_anew or not source.rows_left or source.lineage is None:
        return None
    rows = source.lineage.log.rows["train"]
    return (
        f"the tables of {source.name} began anew with epoch {source.epoch + 1}, of which they have seen "
        f"{rows - source.rows_left:,} of {rows:,} rows; RUN{BEST} has the tables of its best evaluation"
    )


def _record(path: str, data: RunData, ids: dict[str, IdSpace]) -> StartRecord:
    rows = {"train": data.train.rows, "valid": data.validation.rows}
    return StartRecord("", None, log_record(path, rows), ids, read_scales(path, data.columns), id=token_hex(8))


def _ids(path: str, data: RunData) -> dict[str, IdSpace]:
    """What the ids of a run's log mean; a run that starts from no other one does not need it."""
    try:
        return read_id_spaces(path, data.columns)
    except UserError as error:
        log_rank0(f"note: {error} A run that starts from this one cannot compare its ids.")
        return _unknown(data.columns)


def _ids_of_source(source: StartSource) -> LogIds:
    """What the ids of the source mean; of an earlier version's run, what its log tells if that is still the same."""
    if source.lineage is not None:
        return LogIds(source.lineage.log.path, source.lineage.ids)
    if source.config is None or source.columns is None:
        tables = tables_on_disk(path_of(source.weights))
        return LogIds(None, {table_feature(name): IdSpace("unknown", part.size[0]) for name, part in tables.items()})
    log = source.config.data.path
    # A log that is gone or has changed leaves the numbers of its ids, which a note tells.
    with suppress(UserError):
        if log is not None and load_schema(log) == source.schema:
            return LogIds(log, read_id_spaces(log, source.columns))
    return LogIds(log, _unknown(source.columns))


def _unknown(columns: Columns) -> dict[str, IdSpace]:
    return {name: IdSpace("unknown", feature.num_embeddings) for name, feature in columns.sparse.items()}
