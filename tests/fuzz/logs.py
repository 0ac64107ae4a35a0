"""Parquet files of a log whose columns have any type, with nulls and with ids outside of their tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = {
    "sparse_features": [{"name": "uid", "num_embeddings": 20}, {"name": "tags", "num_embeddings": 8}],
    "dense_features": ["age"],
    "labels": ["finish", "like"],
    "group": "uid",
}
LISTS = ("tags",)

TYPES: dict[str, pa.DataType] = {
    **{str(t): t for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint32(), pa.uint64())},
    **{str(t): t for t in (pa.bool_(), pa.float16(), pa.float32(), pa.float64(), pa.string(), pa.binary(), pa.null())},
    "large_string": pa.large_string(),
    "date": pa.date32(),
    "time": pa.timestamp("us"),
    "decimal": pa.decimal128(20, 2),
    "dictionary": pa.dictionary(pa.int32(), pa.int64()),
    "dictionary of strings": pa.dictionary(pa.int32(), pa.string()),
    "list of int64": pa.list_(pa.int64()),
    "list of int8": pa.list_(pa.int8()),
    "large list": pa.large_list(pa.int32()),
    "fixed list": pa.list_(pa.int64(), 2),
    "list view": pa.list_view(pa.int32()),
    "large list view": pa.large_list_view(pa.float64()),
    "short decimal": pa.decimal32(9, 1),
    "list of floats": pa.list_(pa.float32()),
    "list of strings": pa.list_(pa.string()),
    "list of lists": pa.list_(pa.list_(pa.int64())),
    "map": pa.map_(pa.int64(), pa.int64()),
    "struct": pa.struct([("x", pa.int64())]),
}
"""Types of columns, by the name that a case gives."""


def write_parquet(path: Path, edit: Mapping[str, Any]) -> None:
    """Writes `rows` rows drawn by `seed`, with the columns, types and values that the edit asks for.

    Keys of the edit: rows, seed, types {column: name in TYPES}, nulls {column: share}, values {column: a value that
    every fifth row gets}, drop [column], rename {column: name}, row_group_size, compression.
    """
    rows, random = edit.get("rows", 64), np.random.default_rng(edit.get("seed", 0))
    columns: dict[str, list[Any]] = {
        "uid": random.integers(0, 20, rows).tolist(),
        "tags": [random.integers(0, 8, n).tolist() for n in random.integers(0, 4, rows)],
        "age": random.random(rows, dtype=np.float32).tolist(),
        "finish": random.integers(0, 2, rows).tolist(),
        "like": random.integers(0, 2, rows).tolist(),
    }
    arrays = {}
    for name, values in columns.items():
        given, nulls = edit.get("values", {}), edit.get("nulls", {})
        values = [given[name] if name in given and i % 5 == 1 else value for i, value in enumerate(values)]
        values = [None if random.random() < nulls.get(name, 0) else value for value in values]
        default = "list of int64" if name in LISTS else "float" if name == "age" else "int64"
        arrays[edit.get("rename", {}).get(name, name)] = as_array(
            values, TYPES[edit.get("types", {}).get(name, default)]
        )
    table = pa.table({name: array for name, array in arrays.items() if name not in edit.get("drop", ())})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table, path, row_group_size=edit.get("row_group_size", 1000), compression=edit.get("compression", "snappy")
    )


def as_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """The values in a type, or nulls where no conversion exists."""
    try:
        return pa.array(values).cast(kind, safe=False) if kind != pa.null() else pa.nulls(len(values))
    except (pa.ArrowException, OverflowError):
        pass
    flat = [value[0] if isinstance(value, list) and value else value for value in values]
    for candidate in (
        flat,
        [None if v is None else [v, v] for v in flat],
        [None if v is None else str(v) for v in flat],
    ):
        try:
            return pa.array(candidate, kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            continue
    return pa.nulls(len(values), kind)
