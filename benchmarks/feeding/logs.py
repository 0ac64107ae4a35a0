"""Logs to read: single ids, lists of ids, and lists with weights of ids and rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.data.schema import Schema, SparseFeature, save_schema

Shape = Literal["ids", "lists", "weights"]
"""8 features of one id; of 0 to 8 ids; of 0 to 8 ids with weights, and two more columns that weigh rows."""
FEATURES = 8
IDS = 100_000
ROW_GROUP = 65_536


def write_log(folder: Path, shape: Shape, rows: int) -> None:
    """Writes `train/` and schema.json."""
    names = [f"feature_{i}" for i in range(FEATURES)]
    of_ids = {name: f"weight_{name}" for name in names} if shape == "weights" else {}
    schema = Schema(
        sparse_features=tuple(SparseFeature(name, IDS, weights=of_ids.get(name)) for name in names),
        labels=("finish", "like"),
        dense_features=("dense_0", "dense_1"),
        group="user",
        weight="weight" if of_ids else None,
        label_weights={"like": "weight_like"} if of_ids else {},
    )
    (folder / "train").mkdir(parents=True)
    save_schema(schema, str(folder))
    writer: pq.ParquetWriter | None = None
    for chunk, start in enumerate(range(0, rows, ROW_GROUP)):
        table = _draw(shape, names, min(ROW_GROUP, rows - start), np.random.default_rng(chunk))
        writer = writer or pq.ParquetWriter(folder / "train/part-00000.parquet", table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _draw(shape: Shape, names: Sequence[str], rows: int, random: np.random.Generator) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for name in names:
        lengths = np.ones(rows, np.int64) if shape == "ids" else random.integers(0, 8, rows, endpoint=True)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        # A few ids are most of the rows, as in logs of clicks.
        ids = pa.array((IDS * random.random(offsets[-1]) ** 3).astype(np.int32))
        columns[name] = ids if shape == "ids" else pa.ListArray.from_arrays(offsets, ids)
        if shape == "weights":
            weights = pa.array(random.random(offsets[-1], dtype=np.float32))
            columns[f"weight_{name}"] = pa.ListArray.from_arrays(offsets, weights)
    if shape == "weights":
        columns |= {name: pa.array(random.random(rows, dtype=np.float32)) for name in ("weight", "weight_like")}
    columns |= {name: pa.array(random.standard_normal(rows, dtype=np.float32)) for name in ("dense_0", "dense_1")}
    columns |= {name: pa.array((random.random(rows) < 0.2).astype(np.int8)) for name in ("finish", "like")}
    return pa.table(columns | {"user": pa.array(random.integers(0, IDS, rows))})
