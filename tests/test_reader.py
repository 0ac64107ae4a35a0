"""data/reader.py: which rows come, in which order and on which rank, and that a batch holds what the log holds."""

import json
import math
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from iopath.common.file_io import PathHandler, g_pathmgr
from torchrec.datasets.utils import Batch

from stem_torchrec.data import reader as reader_module
from stem_torchrec.data.batch import Exposures
from stem_torchrec.data.files import Columns, find_row_groups
from stem_torchrec.data.footers import ids_per_row, missing_labels
from stem_torchrec.data.listing import RowGroup
from stem_torchrec.data.loader import data_loader
from stem_torchrec.data.reader import ParquetReader, order_blocks
from stem_torchrec.data.schema import load_schema, save_schema

from logs import SCHEMA, WEIGHTED, log_table, reader_of, weighted_table, write_log, write_split

LAYOUTS = [  # Rows by file and row group.
    [[1]],
    [[3]],
    [[37]],
    [[1] * 11, [1] * 9],
    [[5, 5, 5], [2], [13, 1]],
    [[0, 4], [0], [50, 0, 7]],
    [[32, 32], [32]],
]
more_workers_than_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def rows_of(batch: Batch) -> list[int]:
    """The numbers of a batch's rows."""
    return batch.sparse_features["row"].values().tolist()


def read(reader: ParquetReader) -> list[int]:
    return [row for batch in reader for row in rows_of(batch)]


def read_by_workers(reader: ParquetReader) -> list[list[Any]]:
    """What each of a loader's workers yields, without the processes."""
    items = []
    for index in range(reader.num_workers or 1):
        info = SimpleNamespace(id=index) if reader.num_workers else None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reader_module, "get_worker_info", lambda info=info: info)
            items.append(list(reader))
    return items


RANKS_AND_WORKERS = [
    (1, 0),
    (2, 3),
    (5, 2),
    *(pytest.param(ranks, workers, marks=pytest.mark.long) for ranks in range(1, 6) for workers in (0, 2, 3)),
]


@pytest.mark.parametrize(("world_size", "workers"), RANKS_AND_WORKERS)
def test_training_reads_every_row_once_in_equal_steps(tmp_path: Path, world_size: int, workers: int) -> None:
    for i, layout in enumerate(LAYOUTS):
        total = sum(map(sum, layout))
        folder = write_log(tmp_path / str(i), total, layout)
        for batch_size, shuffle_rows in [(1, 0), (1, 7), (3, 1), (4, 1000), (7, 10)]:
            options = {"batch_size": batch_size, "world_size": world_size, "shuffle_rows": shuffle_rows}
            read_rows = []
            for rank in range(world_size):
                reader = reader_of(folder, rank=rank, num_workers=workers, **options)
                items = read_by_workers(reader)
                # A loader that takes from its workers in turn meets no gap.
                assert [len(each) for each in items] == sorted((len(each) for each in items), reverse=True)
                batches = list(reader)
                assert len(batches) == reader.steps == math.ceil(math.ceil(total / world_size) / batch_size)
                assert sorted(rows_of(batch) for each in items for batch in each) == sorted(map(rows_of, batches))
                assert sum(len(rows_of(batch)) < batch_size for batch in batches) <= 1
                read_rows += [row for batch in batches for row in rows_of(batch)]
            assert sorted(read_rows) == list(range(total))


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 0), (2, 3), (3, 2)])
def test_the_rest_of_an_epoch_is_read_as_it_would_have_been(tmp_path: Path, world_size: int, workers: int) -> None:
    folder = write_log(tmp_path, 103, [[20] * 3, [40, 3]])
    options = {"batch_size": 6, "world_size": world_size, "num_workers": workers, "shuffle_rows": 30}
    for rank in range(world_size):
        reader = reader_of(folder, rank=rank, **options)
        reader.start_epoch(1)
        whole = [rows_of(batch) for batch in reader]
        for first in range(reader.steps + 1):
            # Interrupted twice.
            rest = reader_of(folder, rank=rank, **options)
            rest.start_epoch(1, reader.left_after(first // 2))
            rest.start_epoch(1, rest.left_after(first - first // 2))
            assert rest.steps == reader.steps - first
            assert [rows_of(batch) for batch in rest] == whole[first:]


def test_other_ranks_read_the_rest_of_an_epoch_once(tmp_path: Path) -> None:
    folder = write_log(tmp_path, 103, [[20] * 3, [40, 3]])
    for ranks, others, before_workers, workers, batch_size in [
        (2, 1, 0, 0, 6),
        (2, 3, 0, 0, 6),
        (3, 2, 0, 2, 5),
        (1, 4, 0, 3, 7),
        (2, 2, 2, 2, 4),  # Only the size of a batch differs.
    ]:
        for steps in (0, 1, 4):
            before, rest = [], []
            readers = [
                reader_of(folder, batch_size=6, rank=rank, world_size=ranks, num_workers=before_workers)
                for rank in range(ranks)
            ]
            for reader in readers:
                before += [row for batch in islice(reader, steps) for row in rows_of(batch)]
            left = json.loads(json.dumps(readers[0].left_after(steps)))
            for rank in range(others):
                reader = reader_of(folder, batch_size=batch_size, rank=rank, world_size=others, num_workers=workers)
                reader.start_epoch(0, left, batch_size=6)
                batches = list(reader)
                assert len(batches) == reader.steps
                rest += [row for batch in batches for row in rows_of(batch)]
            assert sorted(before + rest) == list(range(103))


@pytest.mark.parametrize(("world_size", "workers"), RANKS_AND_WORKERS)
def test_evaluation_reads_every_row_once_in_equal_steps(tmp_path: Path, world_size: int, workers: int) -> None:
    for i, layout in enumerate(LAYOUTS):
        total = sum(map(sum, layout))
        folder = write_log(tmp_path / str(i), total, layout)
        for batch_size in (1, 4, 100):
            read_rows = []
            for rank in range(world_size):
                options = {"rank": rank, "world_size": world_size, "num_workers": workers}
                reader = reader_of(folder, training=False, batch_size=batch_size, **options)
                items = [item for each in read_by_workers(reader) for item in each]
                assert len(items) == reader.steps == math.ceil(math.ceil(total / world_size) / batch_size)
                for item in items:
                    rows = item.rows.tolist()
                    assert rows_of(item.batch) == rows  # A row's number is its position in the split.
                    assert item.groups.tolist() == [row // 3 for row in rows]
                    assert len(item.batch.labels) == max(1, len(rows))
                    read_rows += rows
            # Stretch after stretch, so the ranks' and workers' rows stand in the order of the files.
            assert read_rows == list(range(total))


def test_a_rank_without_rows_gets_padding_that_counts_for_nothing(tmp_path: Path) -> None:
    folder = write_log(tmp_path, 2)
    readers = [reader_of(folder, training=False, batch_size=4, rank=rank, world_size=3) for rank in range(3)]
    (empty,) = readers[0]
    assert [len(item.rows) for reader in readers for item in reader] == [0, 1, 1]
    assert empty.groups.dtype == empty.rows.dtype == torch.int64
    assert len(empty.groups) == 0
    assert empty.batch.sparse_features.keys() == ["row", "tags", "place"]
    assert empty.batch.sparse_features.lengths().tolist() == [0, 0, 0]
    assert empty.batch.dense_features.tolist() == [[0, 0]]
    assert empty.batch.labels.isnan().all()
    for name in ("dense_features", "labels"):
        assert getattr(empty.batch, name).dtype == torch.float32


def test_order_depends_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    folder = write_log(tmp_path, 300, [[20] * 10, [50, 50]])

    def order(seed: int, epoch: int, **options: Any) -> list[int]:
        reader = reader_of(folder, batch_size=10, shuffle_rows=60, seed=seed, **options)
        reader.start_epoch(epoch)
        return read(reader)

    orders = {(seed, epoch): order(seed, epoch) for seed in range(2) for epoch in range(3)}
    assert len({tuple(rows) for rows in orders.values()}) == 6
    for key, rows in orders.items():
        assert order(*key) == rows
        assert sorted(rows) == list(range(300)) != rows
        # The ranks share out the order of one rank.
        assert order(*key, rank=0, world_size=2) + order(*key, rank=1, world_size=2) == rows


def test_rows_are_shuffled_within_and_row_groups_between_blocks(tmp_path: Path) -> None:
    folder = write_log(tmp_path, 100, [[10] * 10])
    reader = reader_of(folder, batch_size=30, shuffle_rows=25)
    rows = np.array(read(reader))
    blocks = order_blocks(reader.row_groups, shuffle_rows=25, seed=0, epoch=0)
    assert [block.rows for block in blocks] == [30, 30, 30, 10]
    assert [block.start for block in blocks] == [0, 30, 60, 90]
    for block, start in zip(blocks[:3], (0, 30, 60), strict=True):
        of_block = rows[start : start + 30]
        firsts = [row_group.first_row for row_group in block.row_groups]
        assert set(of_block) == {first + i for first in firsts for i in range(10)}
        assert firsts != sorted(firsts) or list(of_block) != sorted(of_block)
    whole = read(reader_of(folder, batch_size=100, shuffle_rows=1000))
    assert len(set(np.array(whole[:10]) // 10)) > 3  # One block: the first rows come from many row groups.


def reference_blocks(sizes: list[int], *, shuffle_rows: int, seed: int, epoch: int) -> list[list[int]]:
    """The row groups of each block, by adding up every block's rows anew for each row group, as it was once done."""
    blocks: list[list[int]] = []
    run: list[int] = []
    order = np.random.default_rng((seed, epoch)).permutation(len(sizes))
    for position, i in enumerate(order):
        run.append(int(i))
        if sum(sizes[each] for each in run) >= shuffle_rows or position == len(order) - 1:
            blocks.append(run)
            run = []
    return blocks


def test_the_order_of_an_epoch_is_that_of_earlier_versions() -> None:
    metadata = pq.read_metadata(Path(__file__).parent / "data/log/train/part-00000.parquet")
    for seed in range(3):
        sizes = np.random.default_rng(seed).integers(1, 50, 40).tolist()
        row_groups = [RowGroup("", "", i, 0, size, metadata) for i, size in enumerate(sizes)]
        for shuffle_rows in (1, 30, 100, 10**6):
            order = {"shuffle_rows": shuffle_rows, "seed": seed, "epoch": 2}
            blocks, expected = order_blocks(row_groups, **order), reference_blocks(sizes, **order)
            assert [[group.index for group in block.row_groups] for block in blocks] == expected
            assert [block.rows for block in blocks] == [sum(sizes[i] for i in block) for block in expected]
            assert [block.start for block in blocks] == np.cumsum([0, *(b.rows for b in blocks)])[:-1].tolist()
            assert [block.seed for block in blocks] == [(seed, 2, number) for number in range(len(blocks))]


def test_no_shuffle_keeps_the_order_of_the_log(tmp_path: Path) -> None:
    folder = write_log(tmp_path, 23, [[5, 5], [5, 8]])
    assert read(reader_of(folder, batch_size=2, shuffle_rows=0)) == list(range(23))


def test_an_epoch_set_later_is_for_later_iterators(tmp_path: Path) -> None:
    reader = reader_of(write_log(tmp_path, 60), batch_size=10)
    zero = read(reader)
    iterator = iter(reader)
    reader.start_epoch(1)
    assert [row for batch in iterator for row in rows_of(batch)] == zero != read(reader)


def test_a_batch_holds_what_the_table_holds(tmp_path: Path) -> None:
    table = log_table(31)
    write_split(tmp_path, table, [[7, 3], [21]])
    (batch,) = reader_of(tmp_path, batch_size=31, shuffle_rows=0)
    features = batch.sparse_features.to_dict()
    assert batch.sparse_features.keys() == ["row", "tags", "place"]
    for name in ("row", "tags", "place"):
        # A null is an empty bag, as is an empty list.
        bags = [[] if value is None else np.atleast_1d(value).tolist() for value in table[name].to_pylist()]
        assert [bag.tolist() for bag in features[name].to_dense()] == bags
    assert batch.sparse_features.values().dtype == torch.int64
    assert batch.sparse_features.lengths().dtype == torch.int32
    dense = np.stack([table[name].to_numpy() for name in ("age", "price")], axis=1)
    np.testing.assert_array_equal(batch.dense_features.numpy(), dense)
    labels = np.array([table[name].to_pylist() for name in ("finish", "like")], dtype=np.float32).T  # None as NaN
    np.testing.assert_array_equal(batch.labels.numpy(), labels)
    assert np.isnan(labels).sum() == 11


def test_weights_come_beside_their_ids_and_are_1_for_features_without(tmp_path: Path) -> None:
    table = weighted_table(31)
    write_split(tmp_path, table, [[7, 3], [21]])
    (batch,) = reader_of(tmp_path, WEIGHTED, batch_size=31, shuffle_rows=0)
    features = batch.sparse_features.to_dict()
    assert batch.sparse_features.weights().dtype == torch.float32
    assert features["row"].weights().tolist() == [1] * 31
    for name, weights in (("tags", "tag_weights"), ("place", "place_weight")):
        bags = [[] if value is None else np.atleast_1d(value).tolist() for value in table[weights].to_pylist()]
        assert [bag.tolist() for bag in features[name].to_dense_weights()] == [np.float32(bag).tolist() for bag in bags]
        assert features[name].lengths().tolist() == list(map(len, bags))
    # The order of an epoch is the same with weights, and shuffles them with their ids.
    shuffled = [reader_of(tmp_path, schema, batch_size=31, shuffle_rows=31) for schema in (SCHEMA, WEIGHTED)]
    assert read(shuffled[0]) == read(shuffled[1])
    (batch,) = shuffled[1]
    numbers = batch.sparse_features["row"].values()[batch.sparse_features["place"].lengths() > 0]
    torch.testing.assert_close(batch.sparse_features["place"].weights(), numbers / 10)


def test_only_weighted_features_make_a_batch_weighted_and_padding_has_no_weights(tmp_path: Path) -> None:
    write_split(tmp_path, weighted_table(2))
    columns = Columns.select(WEIGHTED, features=("row",))
    reader = ParquetReader(find_row_groups(str(tmp_path), "train", WEIGHTED, columns), columns, batch_size=2)
    assert [batch.sparse_features.weights_or_none() for batch in reader] == [None]
    (empty,) = reader_of(tmp_path, WEIGHTED, training=False, batch_size=4, rank=0, world_size=3)
    assert empty.batch.sparse_features.weights().tolist() == []


def test_selected_features_and_labels_come_alone_and_in_the_order_asked_for(tmp_path: Path) -> None:
    folder = write_log(tmp_path, 10)
    columns = Columns.select(SCHEMA, features=("place", "row"), labels=("like",))
    reader = ParquetReader(find_row_groups(folder, "train", SCHEMA, columns), columns, batch_size=10)
    (batch,) = reader
    assert batch.sparse_features.keys() == ["place", "row"]
    assert batch.labels.shape == (10, 1)


def test_no_dense_features_and_no_group(tmp_path: Path) -> None:
    folder = write_log(tmp_path, 10)
    (item,) = reader_of(folder, replace(SCHEMA, dense_features=(), group=None), batch_size=10, training=False)
    assert item.batch.dense_features.shape == (10, 0)
    assert item.groups is None


def test_a_feature_can_be_the_group(tmp_path: Path) -> None:
    folder = write_log(tmp_path, 10)
    (item,) = reader_of(folder, replace(SCHEMA, group="row"), batch_size=10, training=False)
    assert item.groups.dtype == torch.int64
    assert item.groups.tolist() == list(range(10))


@pytest.mark.parametrize(
    "types",
    [
        {"row": pa.uint64(), "tags": pa.list_(pa.uint64()), "user": pa.uint32()},
        {"row": pa.int16(), "tags": pa.large_list(pa.int8()), "finish": pa.float64(), "like": pa.float32()},
        {"row": pa.int64(), "tags": pa.list_(pa.field("x", pa.uint8(), nullable=False)), "finish": pa.bool_()},
        {"age": pa.float16(), "price": pa.float64(), "like": pa.uint8()},
    ],
)
def test_integer_and_float_types_may_differ_between_files(tmp_path: Path, types: dict[str, pa.DataType]) -> None:
    table = log_table(40)
    write_split(tmp_path / "same", table)
    other = table.schema
    for name, type_ in types.items():
        other = other.set(other.get_field_index(name), pa.field(name, type_))
    write_split(tmp_path / "mixed", table.slice(0, 15))
    pq.write_table(table.slice(15).cast(other), tmp_path / "mixed/train/part-1.parquet", row_group_size=10)
    (expected,) = reader_of(tmp_path / "same", batch_size=40, shuffle_rows=0)
    (batch,) = reader_of(tmp_path / "mixed", batch_size=40, shuffle_rows=0)
    assert torch.equal(batch.sparse_features.values(), expected.sparse_features.values())
    assert torch.equal(batch.sparse_features.lengths(), expected.sparse_features.lengths())
    assert torch.equal(batch.dense_features, expected.dense_features)
    assert torch.equal(batch.labels.nan_to_num(-1), expected.labels.nan_to_num(-1))
    assert sorted(read(reader_of(tmp_path / "mixed", batch_size=40))) == list(range(40))


def test_a_dictionary_of_integers_is_read_as_integers(tmp_path: Path) -> None:
    table = log_table(40)
    write_split(tmp_path, table.set_column(0, "row", table["row"].dictionary_encode()))
    assert read(reader_of(tmp_path, batch_size=40, shuffle_rows=0)) == list(range(40))


def test_ids_above_32_bits_are_read(tmp_path: Path) -> None:
    ids = [2**40 - 1, 2**31, 0]
    table = log_table(3)
    write_split(tmp_path, table.set_column(0, "row", pa.array(ids)).set_column(1, "tags", pa.array([[i] for i in ids])))
    features = tuple(replace(feature, num_embeddings=2**40) for feature in SCHEMA.sparse_features)
    (batch,) = reader_of(tmp_path, replace(SCHEMA, sparse_features=features), batch_size=3, shuffle_rows=0)
    assert batch.sparse_features["row"].values().tolist() == ids
    assert batch.sparse_features["tags"].values().tolist() == ids


@more_workers_than_cores
def test_worker_processes_read_the_same_rows_of_each_epoch(tmp_path: Path) -> None:
    folder = write_log(tmp_path, 100, [[10] * 5, [50]])
    reader = reader_of(folder, batch_size=9, world_size=2, rank=1, shuffle_rows=30, num_workers=2)
    loader = data_loader(reader)
    seen = []
    for epoch in (0, 1):
        reader.start_epoch(epoch)
        batches = list(loader)
        seen.append([row for batch in batches for row in rows_of(batch)])
        assert len(batches) == reader.steps
        assert sorted(seen[-1]) == sorted(read(reader))
    assert seen[0] != seen[1]
    reader.start_epoch(0)
    assert [row for batch in loader for row in rows_of(batch)] == seen[0]


@more_workers_than_cores
def test_worker_processes_evaluate_the_same_rows(tmp_path: Path) -> None:
    reader = reader_of(write_log(tmp_path, 50), training=False, batch_size=8, world_size=2, num_workers=2)
    items: Sequence[Exposures] = list(data_loader(reader))
    assert len(items) == reader.steps
    assert sorted(row for item in items for row in item.rows.tolist()) == list(range(25))
    assert all(rows_of(item.batch) == item.rows.tolist() for item in items)


def test_a_pickled_reader_reads_the_same(tmp_path: Path) -> None:
    reader = reader_of(write_log(tmp_path, 64, [[16] * 4]), batch_size=8, shuffle_rows=32)
    copy = pickle.loads(pickle.dumps(reader))
    assert read(copy) == read(reader)
    assert len({id(row_group.metadata) for row_group in copy.row_groups}) == 1  # One footer per file, not per group.


def test_a_rank_decodes_its_own_row_groups_once_and_one_block_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_log(tmp_path, 100, [[10] * 10])
    opened: list[int] = []

    def read_row_group(row_group: Any, columns: Columns, **options: Any) -> pa.Table:
        opened.append(row_group.index)
        return original(row_group, columns, **options)

    original = reader_module.read_row_group
    monkeypatch.setattr(reader_module, "read_row_group", read_row_group)
    iterator = iter(reader_of(folder, batch_size=5, shuffle_rows=0, rank=1, world_size=2))
    assert opened == []
    for step in range(10):
        next(iterator)
        assert opened == list(range(5, 5 + len(opened)))
        assert len(opened) <= step // 2 + 2
    assert opened == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("end", ["close", "exhaust", "drop"])
def test_no_thread_outlives_the_iterator(tmp_path: Path, end: str) -> None:
    reader = reader_of(write_log(tmp_path, 50, [[10] * 5]), batch_size=5, shuffle_rows=10)
    before = threading.active_count()
    iterator = iter(reader)
    next(iterator)
    assert threading.active_count() == before + 1
    if end == "close":
        iterator.close()
    elif end == "exhaust":
        list(iterator)
    else:
        del iterator
    assert threading.active_count() == before


@pytest.mark.long
def test_the_interpreter_exits_with_an_iterator_open(tmp_path: Path) -> None:
    folder = write_log(tmp_path, 50, [[10] * 5])
    code = (
        f"from logs import *; it = iter(reader_of({folder!r}, batch_size=5, shuffle_rows=10)); next(it); print('read')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "read\n")
    assert "Traceback" not in done.stderr


class Bucket(PathHandler):
    """Serves `bucket://logs/...` from a folder, and no path that lost a slash on the way."""

    PREFIX = "bucket://logs/"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.opened: list[str] = []

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _local(self, path: str) -> Path:
        assert path.startswith(self.PREFIX)
        assert "//" not in path.removeprefix(self.PREFIX)
        return self.folder / path.removeprefix(self.PREFIX)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> IO[Any]:
        self.opened.append(path)
        return self._local(path).open(mode)

    def _isfile(self, path: str, **_: Any) -> bool:
        return self._local(path).is_file()

    def _isdir(self, path: str, **_: Any) -> bool:
        return self._local(path).is_dir()

    def _ls(self, path: str, **_: Any) -> list[str]:
        return [entry.name for entry in self._local(path).iterdir()]


@pytest.mark.parametrize("end", ["", "/"])
def test_a_remote_log_is_read_through_its_handler(tmp_path: Path, end: str) -> None:
    write_split(tmp_path / "log", log_table(30), [[10], [20]])
    bucket = Bucket(tmp_path)
    g_pathmgr.register_handler(bucket, allow_override=True)
    folder = f"bucket://logs/log{end}"
    save_schema(SCHEMA, folder)
    assert (tmp_path / "log/schema.json").is_file()
    reader = reader_of(folder, load_schema(folder), batch_size=30, shuffle_rows=0)
    assert read(reader) == list(range(30))
    assert set(bucket.opened) == {
        f"bucket://logs/log/{name}" for name in ("schema.json", "train/part-0.parquet", "train/part-1.parquet")
    }


def test_the_schema_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    schema = replace(WEIGHTED, facts={"best_auc/like": 0.75}, description="drawn")
    save_schema(schema, str(tmp_path))
    assert load_schema(str(tmp_path)) == schema
    # Features say only what differs from the defaults.
    assert json.loads((tmp_path / "schema.json").read_text())["sparse_features"] == [
        {"name": "row", "num_embeddings": 1000},
        {"name": "tags", "num_embeddings": 10, "pooling": "mean", "weights": "tag_weights", "embedding_dim": 4},
        {"name": "place", "num_embeddings": 10, "weights": "place_weight", "embedding_dim": 12},
    ]


@pytest.mark.parametrize(("write_statistics", "missing"), [(True, False), (False, True)])
def test_missing_labels_are_seen_in_the_footers(tmp_path: Path, write_statistics: bool, missing: bool) -> None:
    write_split(tmp_path, log_table(20), [[1, 1], [1, 17]], write_statistics=write_statistics)
    row_groups = find_row_groups(str(tmp_path), "train", SCHEMA, Columns.select(SCHEMA))
    assert missing_labels(row_groups, ("like",))
    assert missing_labels(row_groups, ("finish",)) == missing  # Without a count, it may be.


def test_the_footers_tell_how_many_ids_a_row_has(tmp_path: Path):
    write_log(tmp_path, 30, [[10, 5], [15]])
    row_groups = reader_of(tmp_path, batch_size=5).row_groups
    # tags holds 0 to 2 ids by n % 3, and none where n % 5 == 4; a row without ids counts as one.
    ids = [max(1, 0 if n % 5 == 4 else n % 3) for n in range(30)]
    assert ids_per_row(row_groups, ["row", "tags", "place"]) == {"row": 1, "tags": sum(ids) / 30, "place": 1}


FAILS_BESIDE_A_READER = """
import sys
from logs import reader_of
from stem_torchrec.data.loader import data_loader
batches = iter(data_loader(reader_of(sys.argv[1], batch_size=6, num_workers=1)))
next(batches)
here = iter(reader_of(sys.argv[1], batch_size=6, shuffle_rows=10))
next(here)
raise RuntimeError("some error")
"""


def test_an_error_ends_the_process_with_its_readers(tmp_path: Path) -> None:
    folder = write_log(tmp_path, 103, [[20] * 3, [40, 3]])
    line = [sys.executable, "-c", FAILS_BESIDE_A_READER, str(folder)]
    done = subprocess.run(line, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "RuntimeError: some error" in done.stderr
    assert done.stderr.count("Traceback") == 1
