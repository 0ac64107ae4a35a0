"""Which files of a split are read: all below its folder, or an error that names what would be left out."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from iopath.common.file_io import PathHandler, g_pathmgr

from stem_torchrec.data.listing import read_footers
from stem_torchrec.runtime.errors import UserError

from logs import log_table, reader_of, write_split

ROWS = 10


def write(path: Path, start: int) -> None:
    """Writes ROWS rows, numbered from `start`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(log_table(100).slice(start, ROWS), path)


def rows_of(log: Path | str) -> list[int]:
    """The numbers of a log's training rows, in the order of the files."""
    (batch,) = reader_of(log, batch_size=1000, shuffle_rows=0)
    return batch.sparse_features["row"].values().tolist()


def error_of(log: Path) -> str:
    with pytest.raises(UserError) as error:
        reader_of(log, batch_size=5)
    assert "\n" not in str(error.value)
    return str(error.value)


NESTED = [
    "b.parquet",
    "b/2.parquet",
    "b/c/1.parquet",
    "day=1/part-0.parquet",
    "day=2.parquet/part-0.PARQUET",
    "p.pq",
]


def test_files_in_folders_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for i, name in enumerate(NESTED):
        write(tmp_path / "train" / name, ROWS * i)
    assert rows_of(tmp_path) == list(range(ROWS * len(NESTED)))
    assert [group.name for group in reader_of(tmp_path, batch_size=5).row_groups] == NESTED


def test_names_that_begin_with_a_dot_or_underscore_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "train/day=1/part-0.parquet", 0)
    for name in ("_SUCCESS", "._SUCCESS.crc", "._part-0.parquet", "day=1/.part-0.parquet.crc", "day=1/_metadata"):
        (tmp_path / "train" / name).write_bytes(b"\0")
    for name in ("_temporary/0/part-1.parquet", ".ipynb_checkpoints/part-1.parquet", "day=1/_delta_log/0.parquet"):
        write(tmp_path / "train" / name, 50)
    assert rows_of(tmp_path) == list(range(ROWS))


@pytest.mark.parametrize("name", ["part-1.parquet.gz", "a.pqt", "part-1", "day=1/part-1.csv", "part-1.parquet.new"])
def test_a_file_that_would_be_left_out_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train/part-0.parquet", 0)
    write(tmp_path / "train" / name, 50)
    assert error_of(tmp_path) == (
        f"{tmp_path}/train/{name} is not a .parquet or .pq file, and what it holds would be left out; write it "
        "as one, move it away, or begin its name with _ to leave it out."
    )


def test_a_column_that_only_the_name_of_a_folder_has_is_named(tmp_path: Path) -> None:
    for user in (0, 1):
        path = tmp_path / f"train/user={user}/part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(log_table(ROWS).drop_columns("user"), path)
    assert error_of(tmp_path) == (
        f"{tmp_path}/train/user=0/part-0.parquet has the column 'user' only in the name of its folder; write it into "
        "the file."
    )


def test_links_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "days/1/part-0.parquet", 0)
    write(tmp_path / "days/2/part-0.parquet", ROWS)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/first").symlink_to(tmp_path / "days/1")
    (tmp_path / "train/second").symlink_to(tmp_path / "days/2")
    assert rows_of(tmp_path) == list(range(2 * ROWS))
    (tmp_path / "days/2/again").symlink_to(tmp_path / "train")
    assert error_of(tmp_path) == (
        f"{tmp_path}/train/second/again and {tmp_path}/train are the same folder, whose rows would be read twice; "
        "remove the link."
    )
    (tmp_path / "days/2/again").unlink()
    (tmp_path / "train/third").symlink_to("second")
    assert "are the same folder" in error_of(tmp_path)


def test_what_is_neither_file_nor_folder_is_named_and_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "train/part-0.parquet", 0)
    os.mkfifo(tmp_path / "train/part-1.parquet")
    assert error_of(tmp_path).startswith(f"{tmp_path}/train/part-1.parquet is not a .parquet or .pq file")
    (tmp_path / "train/part-1.parquet").unlink()
    (tmp_path / "train/part-1.parquet").symlink_to("nowhere")
    assert error_of(tmp_path).startswith(f"{tmp_path}/train/part-1.parquet is not a whole Parquet file ([Errno 2]")


class Store(PathHandler):
    """Serves the files of a folder as `store://...`, and counts what it is asked; flat, it lists all files below."""

    def __init__(self, folder: Path, *, flat: bool) -> None:
        super().__init__()
        self.folder, self.flat = folder, flat
        self.asked: list[str] = []

    def _get_supported_prefixes(self) -> list[str]:
        return ["store://"]

    def _local(self, path: str) -> Path:
        return self.folder / path.removeprefix("store://")

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: Any) -> Any:
        if self._local(path).is_dir():
            raise FileNotFoundError(path)
        return self._local(path).open(mode)

    def _isdir(self, path: str, **_: Any) -> bool:
        self.asked.append(path)
        return self._local(path).is_dir()

    def _ls(self, path: str, **_: Any) -> list[str]:
        folder = self._local(path)
        if self.flat:
            return [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
        return [f"{entry.name}/" if entry.is_dir() else entry.name for entry in folder.iterdir()]


@pytest.mark.parametrize("flat", [False, True])
def test_a_store_with_or_without_folders_is_read_and_not_asked_about_its_files(tmp_path: Path, flat: bool) -> None:
    for i, name in enumerate(NESTED):
        write(tmp_path / "log/train" / name, ROWS * i)
    write(tmp_path / "log/train/_temporary/part-0.parquet", 90)
    store = Store(tmp_path, flat=flat)
    g_pathmgr.register_handler(store, allow_override=True)
    assert rows_of("store://log") == list(range(ROWS * len(NESTED)))
    folders = ["b", "b/c", "day=1", "day=2.parquet"]
    assert sorted(store.asked) == ["store://log/train", *([] if flat else [f"store://log/train/{f}" for f in folders])]


def test_many_links_to_one_another_end_at_once(tmp_path: Path) -> None:
    for level in range(30):
        (tmp_path / str(level)).mkdir()
        for link in ("a", "b"):
            (tmp_path / str(level) / link).symlink_to(tmp_path / str(level + 1))
    (tmp_path / "30").mkdir()
    with pytest.raises(UserError, match="are the same folder"):
        read_footers(str(tmp_path / "0"))


def test_a_zero_row_file_is_checked_and_read(tmp_path: Path) -> None:
    write_split(tmp_path, log_table(ROWS), [[ROWS], [0]])
    assert rows_of(tmp_path) == list(range(ROWS))
    pq.write_table(log_table(0).drop_columns("row"), tmp_path / "train/part-1.parquet")
    assert "has no column 'row'" in error_of(tmp_path)


def test_a_group_without_a_sign_is_so_in_all_files(tmp_path: Path) -> None:
    table = log_table(ROWS)
    position = table.schema.get_field_index("user")
    hashes = pa.array([2**64 - 1 - n for n in range(ROWS)], pa.uint64())
    write_split(tmp_path, table.set_column(position, "user", hashes))
    (item,) = reader_of(tmp_path, batch_size=ROWS, training=False)
    assert item.groups.numpy().tolist() == hashes.to_pylist()
    (rank, other) = (reader_of(tmp_path, batch_size=99, rank=rank, world_size=11, training=False) for rank in (0, 10))
    assert next(iter(rank)).groups.dtype == next(iter(other)).groups.dtype == item.groups.dtype
    pq.write_table(table, tmp_path / "train/part-1.parquet")
    assert error_of(tmp_path) == (
        f"column 'user' is uint64 in only one of {tmp_path}/train/part-1.parquet and part-0.parquet; give it the same "
        "type in all files."
    )
