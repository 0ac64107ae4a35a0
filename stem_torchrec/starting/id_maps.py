"""Which row of an old table each row of a feature's new tables continues."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from stem_torchrec.data.vocabulary_values import fingerprint
from stem_torchrec.expressions.hashes import hash_of_texts
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.starting.id_spaces import IdSpace, read_vocabulary, values_of

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class IdMap:
    """Which old row each row of a feature's new tables continues."""

    old_rows: int
    """Rows of the feature's tables in the source."""
    new_rows: int
    """Rows of them in this run."""
    rows: Tensor | None = None
    """int64 of shape (new_rows,): the old row, or -1 for a new id. None: row i continues row i for
    i < min(old_rows, new_rows)."""
    unseen: int | None = 0
    """The old row of values that have no id of their own; None if there is none, as with hashes."""
    how: str = ""
    """For the table of what is carried, where ids do not just go on: "matched by value", "hashed", ..."""


@dataclass(frozen=True)
class LogIds:
    """The ids of a log."""

    log: str | None
    """Its folder, which may be gone; None where it is not known."""
    spaces: Mapping[str, IdSpace]
    """By feature."""


def map_ids(old: LogIds, new: LogIds, *, name: str, hashed: bool) -> dict[str, IdMap]:
    """The map of each feature that both logs have; one process calls it, and its vocabularies are in its memory.

    Args:
        old: of the source.
        new: of this run's log.
        name: of the source, for messages.
        hashed: whether a vocabulary may become a hash, and a hash a vocabulary.

    Raises UserError for ids of which no old row is known, as those of another vocabulary or of another hash.

    Example::

        map_ids(yesterday, today, name="runs/a", hashed=False)["user"]  # IdMap(1000, 1030)
    """
    return {
        feature: _FeatureIds(feature, name, old, new, hashed).map() for feature in new.spaces if feature in old.spaces
    }


class _FeatureIds:
    """The ids of a feature in two logs."""

    def __init__(self, feature: str, name: str, old: LogIds, new: LogIds, hashed: bool) -> None:
        self._feature, self._name, self._hashed = feature, name, hashed
        self._old_log, self._new_log = old.log, new.log
        self._old, self._new = old.spaces[feature], new.spaces[feature]

    def map(self) -> IdMap:
        """The map; only a vocabulary, and ids of which nothing is known, have a row of unseen values."""
        ids = self._map()
        return ids if self._old.kind in ("vocabulary", "unknown") else replace(ids, unseen=None)

    def _map(self) -> IdMap:
        kinds = (self._old.kind, self._new.kind)
        if "unknown" in kinds:
            return self._by_number()
        if kinds == ("vocabulary", "vocabulary"):
            return self._by_vocabulary()
        if kinds == ("identity", "identity"):
            return self._by_identity()
        if kinds == ("hash", "hash"):
            return self._by_hash()
        if "identity" in kinds:
            raise UserError(
                f"the ids of {self._feature!r} are by {self._new.kind} in {self._new_log}, but by {self._old.kind} in "
                f"{self._name}; prepare the log with the same kind of ids, or give the feature another name."
            )
        return self._between_vocabulary_and_hash()

    def _by_number(self) -> IdMap:
        """Nothing tells what the ids mean but how many there are."""
        if self._new.rows < self._old.rows:
            fix = f"stem-prepare ... --vocabularies {self._old_log or 'OLDLOG'} --grow"
            if self._old.kind == "unknown":
                fix = f"num_embeddings {self._old.rows} or more in schema.json"
            raise UserError(
                f"the tables of {self._feature!r} would shrink from {self._old.rows} rows in {self._name} to "
                f"{self._new.rows}, and nothing tells which ids are gone; keep the old ids: {fix}"
            )
        return IdMap(self._old.rows, self._new.rows, how="by their number alone")

    def _by_vocabulary(self) -> IdMap:
        old, new = self._old, self._new
        if old.type != new.type:
            self._refuse_vocabulary(f"its values are {new.type}, not {old.type}")
        same_begin = (old.first_id, old.missing_id) == (new.first_id, new.missing_id)
        if same_begin and (old.values, old.fingerprint) == (new.values, new.fingerprint):
            return IdMap(old.rows, new.rows)
        values = self._new_values()
        if same_begin and old.values <= new.values and fingerprint(values, old.values) == old.fingerprint:
            return IdMap(old.rows, new.rows)
        known = pc.index_in(values, self._old_vocabulary().column("value").combine_chunks().cast(values.type))
        positions: Rows = pc.fill_null(known, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        carried = positions >= 0
        if not carried.any() and old.values and new.values:
            self._refuse_vocabulary("it has no value in common with it", refitted=True)
        rows = self._new_ids()
        rows[0] = 0  # Unseen values.
        rows[new.first_id :] = np.where(carried, positions + old.first_id, -1)
        if old.missing_id is not None and new.missing_id is not None:
            rows[new.missing_id] = old.missing_id
        return IdMap(old.rows, new.rows, torch.from_numpy(rows), how="matched by value")

    def _by_identity(self) -> IdMap:
        old, new = self._old, self._new
        old_values, new_values = (space.rows - (space.missing_id is not None) for space in (old, new))
        if new_values < old_values:
            raise UserError(
                f"the ids of {self._feature!r} are numbers below {new_values} in {self._new_log}, but below "
                f"{old_values} in {self._name}; give the feature an identity of at least {old_values}."
            )
        rows = None
        if old.missing_id is not None or new.missing_id is not None:
            rows = self._new_ids()
            rows[:old_values] = np.arange(old_values)
            if old.missing_id is not None and new.missing_id is not None:
                rows[new.missing_id] = old.missing_id
        return IdMap(old.rows, new.rows, None if rows is None else torch.from_numpy(rows))

    def _by_hash(self) -> IdMap:
        old, new = self._old, self._new
        numbers = [(space.buckets, space.salt, space.hashes) for space in (old, new)]
        if numbers[0] == numbers[1]:
            return IdMap(old.rows, new.rows)
        if max(old.hashes, new.hashes) > 1:
            return self._fresh()
        raise UserError(
            f"{self._feature!r} is hashed into {new.buckets} buckets with the salt {new.salt!r} in {self._new_log}, "
            f"but into {old.buckets} with {old.salt!r} in {self._name}, so no id keeps its meaning; give the same "
            "hash, or the feature another name, under which it starts fresh."
        )

    def _between_vocabulary_and_hash(self) -> IdMap:
        old, new = self._old, self._new
        if not self._hashed:
            raise UserError(
                f"the ids of {self._feature!r} are by {new.kind} in {self._new_log}, but by {old.kind} in "
                f"{self._name}; add --start.hash-ids to continue rows by each value's hash, or keep the kind of ids."
            )
        if max(old.hashes, new.hashes) > 1:
            return self._fresh()
        rows = self._new_ids()
        if new.kind == "hash":
            # The most frequent value of a bucket comes first, and so gives the bucket its row.
            vocabulary = self._old_vocabulary().sort_by([("count", "descending"), ("id", "ascending")])
            buckets = hashes_of(values_of(vocabulary.combine_chunks()), new)
            filled, first = np.unique(buckets, return_index=True)
            rows[filled] = vocabulary["id"].to_numpy()[first]
            rows[new.buckets] = 0 if old.missing_id is None else old.missing_id
        else:
            rows[new.first_id :] = hashes_of(self._new_values(), old)
            if new.missing_id is not None:
                rows[new.missing_id] = old.buckets
        return IdMap(old.rows, new.rows, torch.from_numpy(rows), how="hashed")

    def _fresh(self) -> IdMap:
        """A value with several ids has no row of its own that another one could continue."""
        return IdMap(self._old.rows, self._new.rows, torch.from_numpy(self._new_ids()), how="fresh, as hashes differ")

    def _new_ids(self) -> Rows:
        return np.full(self._new.rows, -1, dtype=np.int64)

    def _new_values(self) -> pa.Array:
        assert self._new_log is not None, "a log with a vocabulary has a path"
        return values_of(read_vocabulary(path_of(self._new_log), self._new.vocabulary))

    def _old_vocabulary(self) -> pa.Table:
        """The vocabulary that the source was trained with, from its log; that may have grown since."""
        log, old = self._old_log, self._old
        try:
            if log is None:
                raise UserError("its log is not known")
            table = read_vocabulary(path_of(log), old.vocabulary)
            if fingerprint(values_of(table), old.values) != old.fingerprint:
                raise UserError(f"{log} has another vocabulary now")
        except UserError as error:
            fix = f"prepare the new log with --vocabularies {log or 'OLDLOG'} --grow, which keeps the old ids"
            if log is not None and log == self._new_log:
                fix = "prepare the log of each day in a folder of its own, with --vocabularies of the day before --grow"
            raise UserError(
                f"the ids of {self._feature!r} in {self._new_log} do not continue those of {self._name}, whose values "
                f"are needed to match them, but {str(error).rstrip('.')}; {fix}."
            ) from error
        return table.slice(0, old.values)

    def _refuse_vocabulary(self, reason: str, *, refitted: bool = False) -> NoReturn:
        keeps = f"if its buckets were fitted anew, prepare the log with --vocabularies {self._old_log} --grow; else "
        raise UserError(
            f"the vocabulary of {self._feature!r} in {self._new_log} is that of another feature than in {self._name}: "
            f"{reason}; {keeps if refitted else ''}give the feature another name, or the log with its vocabulary."
        )


def hashes_of(values: pa.Array, space: IdSpace) -> Rows:
    """The buckets of values, as preparation hashes them: dates by their days, true and false as 1 and 0."""
    if pa.types.is_date32(values.type):
        values = values.cast(pa.int32())
    elif pa.types.is_boolean(values.type):
        values = values.cast(pa.int64())
    texts = values if pa.types.is_string(values.type) else values.cast(pa.string())
    buckets: Rows = hash_of_texts(texts, space.buckets, space.salt).to_numpy(zero_copy_only=False)
    return buckets
