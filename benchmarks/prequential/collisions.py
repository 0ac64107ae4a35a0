"""How many values share their hashed ids, of all those of the days that are trained on."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.data.columns import Columns
from stem_torchrec.data.new_log import VOCABULARY, WAITING
from stem_torchrec.data.schema import load_schema
from stem_torchrec.expressions.hashes import salts
from stem_torchrec.starting.id_maps import hashes_of
from stem_torchrec.starting.id_spaces import read_id_spaces

from prequential.day_logs import HASHES, DayLogs

HEADERS = ("feature", "rows of a table", "values", "with an id", "hashes", "values that share", "their rows", "lesser")
ABOUT = """Of all days that are trained on. Tables of hashed ids have as many rows as those of the vocabulary on the
last of them, which gives so many values an id. Values share if another one has all of their hashed ids. Lesser is the
share of the rows whose hashed ids are trained more by a more frequent value."""


@dataclass(frozen=True)
class HashedValues:
    """The values of a feature with hashed ids."""

    feature: str
    table_rows: int
    values: int
    with_id: int
    """Values that have an id of their own in the vocabulary."""
    hashes: int
    sharing: float
    """Share of the values whose hashed ids another value has as well."""
    sharing_rows: float
    """Share of the rows with such a value."""
    lesser_rows: float
    """Share of the rows with a value that is not the most frequent one of its hashed ids."""

    @property
    def cells(self) -> list[str]:
        """For the report."""
        counts = (f"{self.table_rows:,}", f"{self.values:,}", f"{self.with_id:,}", str(self.hashes))
        return [self.feature, *counts, *(f"{each:.1%}" for each in (self.sharing, self.sharing_rows, self.lesser_rows))]


def hashed_values(logs: DayLogs) -> list[HashedValues]:
    """Measures the collisions of each feature that has hashed ids, with one hash and with two."""
    last, measured = logs.options.days[-2], []
    vocabularies = logs.to_train(last, "days")
    for kind in HASHES:
        if not (logs.folder / "logs" / kind).exists():
            continue
        log = logs.to_train(last, kind)
        spaces = read_id_spaces(str(log), Columns.select(load_schema(str(log))))
        for name in logs.options.hashed:
            # Values without an id have hashed ids as well.
            parts = [
                pq.read_table(vocabularies / folder / f"{name}.parquet", columns=["value", "count"])
                for folder in (VOCABULARY, WAITING)
            ]
            values = pa.concat_arrays([chunk for part in parts for chunk in part["value"].chunks])
            counts, space = np.concatenate([part["count"].to_numpy() for part in parts]), spaces[name]
            by_salt = [hashes_of(values, replace(space, salt=salt)) for salt in salts(space.salt, space.hashes)]
            ids = np.unique(np.stack(by_salt, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
            shares = np.bincount(ids)[ids] > 1
            largest = np.zeros(ids.max() + 1, dtype=counts.dtype)
            np.maximum.at(largest, ids, counts)
            rows = counts.sum()
            measured.append(
                HashedValues(
                    feature=name,
                    table_rows=space.rows,
                    values=len(values),
                    with_id=parts[0].num_rows,
                    hashes=space.hashes,
                    sharing=float(shares.mean()),
                    sharing_rows=float(counts[shares].sum() / rows),
                    lesser_rows=float(1 - largest.sum() / rows),
                )
            )
    return measured
