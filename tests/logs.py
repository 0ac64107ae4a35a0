"""Small logs with known rows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.data.files import Columns, find_row_groups
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import Schema, SparseFeature, save_schema

SCHEMA = Schema(
    sparse_features=(SparseFeature("row", 1000), SparseFeature("tags", 10), SparseFeature("place", 10)),
    labels=("finish", "like"),
    dense_features=("age", "price"),
    group="user",
)


def log_table(rows: int) -> pa.Table:
    """Rows with their number in the column `row`, and with nulls and empty lists where a log may have them.

    The first ones::

        row  tags    place  age  price  finish  like   user
        0    []      0      0.0  -0.0   0       null   0
        1    [1]     1      0.5  -1.0   1       true   0
        2    [2, 2]  2      1.0  -2.0   0       false  0
        3    []      null   1.5  -3.0   1       null   1
        4    null    4      2.0  -4.0   0       true   1
    """
    numbers = range(rows)
    return pa.table(
        {
            "row": pa.array(numbers, pa.int32()),
            "tags": pa.array([None if n % 5 == 4 else [n % 10] * (n % 3) for n in numbers], pa.list_(pa.int32())),
            "place": pa.array([None if n % 4 == 3 else n % 10 for n in numbers], pa.int32()),
            "age": pa.array([n / 2 for n in numbers], pa.float32()),
            "price": pa.array([-n for n in numbers], pa.float32()),
            "finish": pa.array([n % 2 for n in numbers], pa.int8()),
            "like": pa.array([None if n % 3 == 0 else n % 3 == 1 for n in numbers], pa.bool_()),
            "user": pa.array([n // 3 for n in numbers], pa.int64()),
        }
    )


def write_split(
    folder: Path | str, table: pa.Table, files: Sequence[Sequence[int]] = (), *, split: str = "train", **options: Any
) -> None:
    """Writes `table` as files of row groups of the given sizes, by default as one file of one row group."""
    (Path(folder) / split).mkdir(parents=True, exist_ok=True)
    start = 0
    for i, sizes in enumerate(files or [[len(table)]]):
        with pq.ParquetWriter(Path(folder) / split / f"part-{i}.parquet", table.schema, **options) as writer:
            for size in sizes:
                writer.write_table(table.slice(start, size), row_group_size=size or None)
                start += size
    assert start == len(table)


def write_log(folder: Path, rows: int, files: Sequence[Sequence[int]] = ()) -> str:
    """Writes the first `rows` rows as `train/`, and schema.json."""
    write_split(folder, log_table(rows), files)
    save_schema(SCHEMA, str(folder))
    return str(folder)


def reader_of(folder: Path | str, schema: Schema = SCHEMA, *, split: str = "train", **options: Any) -> ParquetReader:
    """A reader of all columns."""
    columns = Columns.select(schema)
    return ParquetReader(find_row_groups(str(folder), split, schema, columns), columns, **options)


WEIGHTED = replace(
    SCHEMA,
    sparse_features=(
        SparseFeature("row", 1000),
        SparseFeature("tags", 10, pooling="mean", weights="tag_weights", embedding_dim=4),
        SparseFeature("place", 10, weights="place_weight", embedding_dim=12),
    ),
)


def weighted_table(rows: int) -> pa.Table:
    """`log_table` with weights: of tags 0.5, 1.0, ... within a list, of place a tenth of the row's number."""
    table = log_table(rows)
    tags, places = table["tags"].to_pylist(), table["place"].to_pylist()
    weights = [None if ids is None else [(i + 1) / 2 for i in range(len(ids))] for ids in tags]
    table = table.append_column("tag_weights", pa.array(weights, pa.list_(pa.float32())))
    weight = [None if place is None else n / 10 for n, place in enumerate(places)]
    return table.append_column("place_weight", pa.array(weight, pa.float64()))
