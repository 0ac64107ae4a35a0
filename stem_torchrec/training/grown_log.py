"""A run beside another log: which ids are new to the run's tables, how many, and which numbers are scaled otherwise."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from stem_torchrec.data.batch import Exposures
from stem_torchrec.data.columns import Columns
from stem_torchrec.metrics.collectives import gather
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.starting.id_maps import LogIds, map_ids
from stem_torchrec.starting.id_spaces import IdSpace, read_id_spaces, read_vocabulary
from stem_torchrec.starting.record import StartRecord, read_start
from stem_torchrec.starting.scales import note_of_other_scales, read_scales


def without_new_ids(log: str, columns: Columns, of_run: Columns, *, run: str) -> Columns:
    """The columns of a log, with the sizes of the run's tables where the log's vocabularies are larger.

    Readers give the ids beyond them the id of unseen values, as preparation with the run's vocabularies would have.
    A note tells which numbers are scaled otherwise than in the run's own log.

    Args:
        log: its folder.
        columns: of the log.
        of_run: of the same features.
        run: its folder.

    Raises UserError where the log's vocabularies cannot be read, or do not begin as those of the run.
    """
    rows = {name: feature.num_embeddings for name, feature in columns.sparse.items()}
    of_tables = {name: of_run.sparse[name].num_embeddings for name in rows}
    try:
        spaces = read_id_spaces(log, columns)
    except UserError as error:
        if rows != of_tables:
            raise
        log_rank0(f"note: {error} The ids of the log cannot be compared with those of the run.")
        return columns
    # A run of an earlier version has recorded nothing of its log.
    if (record := read_start(path_of(run))) is not None:
        _check_same_ids(record, run, log, spaces)
        scales = read_scales(log, columns)
        if note := note_of_other_scales(record.scales, scales, run=run, old_log=record.log.path, log=log):
            log_rank0(f"note: {note}")
    grown = {
        name: count for name, count in rows.items() if count > of_tables[name] and spaces[name].kind == "vocabulary"
    }
    sizes = {name: of_tables[name] if name in grown else count for name, count in rows.items()}
    sparse = {name: replace(feature, num_embeddings=sizes[name]) for name, feature in columns.sparse.items()}
    return replace(columns, sparse=sparse, ids_of_log=grown)


def _check_same_ids(record: StartRecord, run: str, log: str, of_log: Mapping[str, IdSpace]) -> None:
    """Raises UserError for ids of the log that mean something else than those of the run."""
    for name, space in of_log.items():
        own = record.ids.get(name)
        if own is None or "unknown" in (own.kind, space.kind):
            continue
        if own.kind == space.kind == "vocabulary" and own.fingerprint != space.fingerprint:
            is_same = _continues(name, (record.log.path, own), (log, space), run)
        else:
            # Of the ids of two vocabularies with the same values the first one tells.
            facts = [(each.kind, each.first_id, each.buckets, each.salt, each.hashes) for each in (own, space)]
            is_same = facts[0] == facts[1]
        if not is_same:
            fix = f"prepare the log with --vocabularies {record.log.path} --grow"
            if record.log.path == log:
                fix = "it has been prepared again since then; give the log as it was by --data.path"
            raise UserError(
                f"the ids of {name!r} in {log} have other values than those that {run} was trained with; {fix}."
            )


def _continues(name: str, own: tuple[str, IdSpace], other: tuple[str, IdSpace], run: str) -> bool:
    """Whether the larger one of two vocabularies of a feature begins with the smaller one.

    Also true of a run with more values than the log, if its own log is gone: then nothing tells.
    """
    (old_log, old), (new_log, new) = (own, other) if own[1].values <= other[1].values else (other, own)
    try:
        read_vocabulary(path_of(new_log), new.vocabulary)
    except UserError:
        return new_log == own[0]
    try:
        [ids] = map_ids(LogIds(old_log, {name: old}), LogIds(new_log, {name: new}), name=run, hashed=False).values()
    except UserError:
        return False
    return ids.rows is None


class UnseenIds:
    """Counts the ids that a rank reads as unseen.

    Args:
        columns: that it reads.
        device: of the rank.
    """

    def __init__(self, columns: Columns, device: torch.device) -> None:
        self._columns, self._device = columns, device
        self._counts = torch.zeros(len(columns.sparse), dtype=torch.int64)

    def add(self, item: Exposures) -> None:
        """Counts those of a batch."""
        if item.unseen is not None:
            self._counts += item.unseen

    def note(self) -> None:
        """Prints how many there were on all ranks, which all call it."""
        if self._columns.ids_of_log:
            counts = gather(self._counts.to(self._device)).sum(dim=0).tolist()
            of_features = dict(zip(self._columns.sparse, counts, strict=True))
            named = ", ".join(f"{of_features[name]:,} of {name}" for name in self._columns.ids_of_log)
            log_rank0(f"note: ids that the log has added to the run's vocabularies were read as unseen: {named}")
