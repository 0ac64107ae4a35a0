"""A log that breaks its schema ends a run with one sentence that names the place, or its rows are skipped."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.files import Columns
from stem_torchrec.data.loader import data_loader
from stem_torchrec.data.schema import SCHEMA_FILE, LabelCounts, Schema, SparseFeature, Split, load_schema
from stem_torchrec.metrics.multi_task import TaskMetrics
from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.errors import DataError, UserError
from stem_torchrec.training.run_data import note_other_counts

from logs import SCHEMA, WEIGHTED, log_table, reader_of, weighted_table, write_log, write_split

more_workers_than_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create")
ROWS = 30
LAYOUT = [[5], [10, 15]]
BAD_ROW = 22  # Row 17 of the second file, in its row group 1.


def table_with(name: str, value: Any, type_: pa.DataType | None = None) -> pa.Table:
    """The rows of a good log, but for `value` in one place."""
    table = log_table(ROWS)
    values = table[name].to_pylist()
    values[BAD_ROW] = value
    position = table.schema.get_field_index(name)
    return table.set_column(position, name, pa.array(values, type_ or table.schema.types[position]))


def message_of(call: Any, kind: type[UserError]) -> str:
    with pytest.raises(UserError) as raised:
        call()
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)
    return str(raised.value)


def message_of_reading(folder: Path, schema: Schema = SCHEMA) -> str:
    return message_of(lambda: list(reader_of(folder, schema, batch_size=5, shuffle_rows=0)), DataError)


def message_of_opening(folder: Path, schema: Schema = SCHEMA) -> str:
    return message_of(lambda: reader_of(folder, schema, batch_size=5), UserError)


def read_all(folder: Path | str, **options: Any) -> None:
    for _ in data_loader(reader_of(folder, batch_size=5, shuffle_rows=0, **options)):
        pass


def error_of_tags(folder: Path) -> str:
    return (
        f"error: {folder}/train/part-1.parquet, row group 1, row 17, column 'tags': "
        "null is not an id in [0, 10), the table's rows in schema.json. [STEM-ROW]\n"
    )


@pytest.mark.parametrize(
    ("name", "value", "type_", "sentence"),
    [
        ("place", 10, None, r"10 is not an id in \[0, 10\), the table's rows in schema.json."),
        ("place", 100, pa.int8(), r"100 is not an id in \[0, 10\)"),
        ("row", 2**64 - 1, pa.uint64(), r"18446744073709551615 is not an id in \[0, 1000\)"),
        ("tags", [1, 2, -5, 3], None, r"-5 is not an id in \[0, 10\)"),
        ("tags", [1, None], pa.large_list(pa.int16()), r"null is not an id in \[0, 10\)"),
        ("age", 1e300, pa.float64(), r"1e\+300 is not a finite 32-bit float."),
        ("finish", 2**60 + 1, pa.int64(), "1152921504606846977 is not 0, 1 or null"),
        ("finish", 0.5, pa.float64(), "0.5 is not 0, 1 or null"),
        ("user", None, None, "null is not an integer"),
    ],
)
def test_a_bad_value_is_named_with_its_place(
    tmp_path: Path, name: str, value: Any, type_: pa.DataType | None, sentence: str
) -> None:
    write_split(tmp_path, table_with(name, value, type_), LAYOUT)
    place = f"{tmp_path}/train/part-1.parquet, row group 1, row 17, column '{name}': "
    assert re.fullmatch(re.escape(place) + sentence + ".*", message_of_reading(tmp_path))


def weighted_with(name: str, value: Any, type_: pa.DataType | None = None) -> pa.Table:
    """The rows of a good log with weights, but for `value` in BAD_ROW, where tags is [2] and place is 2."""
    table = weighted_table(ROWS)
    values = table[name].to_pylist()
    values[BAD_ROW] = value
    position = table.schema.get_field_index(name)
    return table.set_column(position, name, pa.array(values, type_ or table.schema.types[position]))


@pytest.mark.parametrize(
    ("name", "value", "type_", "sentence"),
    [
        ("tag_weights", [1.0, 2.0], None, "[1.0, 2.0] is not one weight, for the one id of 'tags' in this row."),
        ("tag_weights", None, None, "null is not one weight, for the one id of 'tags' in this row."),
        ("tag_weights", [None], None, "null is not a finite 32-bit float."),
        ("tag_weights", [1e300], pa.large_list(pa.float64()), "1e+300 is not a finite 32-bit float."),
        ("tags", [1, 2, 3], None, "[0.5] is not 3 weights, one for each id of 'tags' in this row."),
        ("tags", [], None, "[0.5] is not null or empty: there is no id of 'tags' in this row."),
        ("place_weight", None, None, "null is not one weight, for the one id of 'place' in this row."),
        ("place_weight", float("nan"), None, "nan is not a finite 32-bit float."),
    ],
)
def test_a_bad_weight_is_named_with_its_place_and_its_row_can_be_skipped(
    tmp_path: Path, name: str, value: Any, type_: pa.DataType | None, sentence: str
) -> None:
    write_split(tmp_path, weighted_with(name, value, type_), LAYOUT)
    column = "tag_weights" if name == "tags" else name
    place = f"{tmp_path}/train/part-1.parquet, row group 1, row 17, column '{column}': "
    assert message_of_reading(tmp_path, WEIGHTED) == place + sentence
    reader = reader_of(tmp_path, WEIGHTED, batch_size=ROWS, shuffle_rows=0, max_bad_share=0.1)
    (batch,) = reader
    assert reader.bad is not None
    assert reader.bad.counts() == {column: 1}
    features = batch.sparse_features.to_dict()
    assert [len(features[name].to_dense_weights()[BAD_ROW]) for name in features] == [0, 0, 0]
    assert features["place"].weights().tolist() == [
        float(np.float32(n / 10)) for n in range(ROWS) if n % 4 != 3 and n != BAD_ROW
    ]


@pytest.mark.parametrize(
    ("name", "type_", "sentence"),
    [
        ("tag_weights", pa.float32(), "is float in {path}; the weights of 'tags' need lists of floats."),
        ("tag_weights", pa.list_(pa.int32()), "is list<element: int32> in {path}; the weights of 'tags' need lists of"),
        ("place_weight", pa.list_(pa.float32()), "in {path}; the weights of 'place' need floats."),
    ],
)
def test_a_wrong_type_of_weights_is_named(tmp_path: Path, name: str, type_: pa.DataType, sentence: str) -> None:
    table = weighted_table(ROWS)
    write_split(tmp_path, table.set_column(table.schema.get_field_index(name), name, pa.nulls(ROWS, type_)))
    message = message_of_opening(tmp_path, WEIGHTED)
    assert sentence.format(path=tmp_path / "train/part-0.parquet") in message
    write_split(tmp_path, table.drop_columns(name))
    missing = message_of_opening(tmp_path, WEIGHTED)
    assert missing == f"{tmp_path}/train/part-0.parquet has no column '{name}'; schema.json names it."


def damage(path: Path) -> None:
    """Changes a byte of the first page of row group 1."""
    column = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 255
    path.write_bytes(content)


BAD_VALUES = [
    ("row", 2**64 - 1, pa.uint64()),
    ("tags", [1, None], pa.large_list(pa.int16())),
    ("age", float("nan"), None),
    ("finish", 2, None),
    ("user", None, None),
]


@pytest.mark.parametrize(("name", "value", "type_"), BAD_VALUES)
def test_a_bad_row_is_skipped_and_counted(tmp_path: Path, name: str, value: Any, type_: pa.DataType | None) -> None:
    write_split(tmp_path / "bad", table_with(name, value, type_), LAYOUT)
    write_split(tmp_path / "good", log_table(ROWS), LAYOUT)
    options = {"batch_size": ROWS, "shuffle_rows": 0, "training": False}
    (good,) = reader_of(tmp_path / "good", **options)
    reader = reader_of(tmp_path / "bad", max_bad_share=0.1, **options)
    (bad,) = reader
    assert reader.bad is not None
    assert reader.bad.counts() == {name: 1}
    others = [row for row in range(ROWS) if row != BAD_ROW]
    assert bad.rows.tolist() == list(range(ROWS))
    assert bad.groups[others].tolist() == good.groups[others].tolist()
    for field in ("dense_features", "labels"):
        read, expected = getattr(bad.batch, field), getattr(good.batch, field)
        assert read[others].nan_to_num(-1).tolist() == expected[others].nan_to_num(-1).tolist()
    assert bad.batch.labels[BAD_ROW].isnan().all()
    assert bad.batch.dense_features[BAD_ROW].tolist() == [0, 0]
    for key, feature in bad.batch.sparse_features.to_dict().items():
        bags = [bag.tolist() for bag in feature.to_dense()]
        expected_bags = [bag.tolist() for bag in good.batch.sparse_features[key].to_dense()]
        assert bags == [[] if row == BAD_ROW else bag for row, bag in enumerate(expected_bags)]


def test_a_row_that_is_bad_twice_counts_once_and_too_many_end_the_run(tmp_path: Path) -> None:
    table = table_with("place", 10)
    labels = [2 if row in (BAD_ROW, 25) else 1 for row in range(ROWS)]
    table = table.set_column(table.schema.get_field_index("finish"), "finish", pa.array(labels))
    write_split(tmp_path, table, LAYOUT)
    reader = reader_of(tmp_path, batch_size=5, max_bad_share=0.1)
    for _ in range(2):
        reader.start_epoch(0)
        list(reader)
        assert reader.bad is not None
        assert reader.bad.counts() == {"place": 1, "finish": 1}
    few = reader_of(tmp_path, batch_size=5, max_bad_share=0.05)
    message = message_of(lambda: list(few), DataError)
    assert message.startswith(
        "2 rows of this rank break the schema (place: 1, finish: 1), and --data.max-bad-share lets 1"
    )


def test_a_damaged_page_is_skipped_with_its_row_group(tmp_path: Path) -> None:
    write_split(tmp_path, log_table(ROWS), LAYOUT, write_page_checksum=True)
    path = tmp_path / "train/part-1.parquet"
    damage(path)
    assert "row group 1: cannot be read" in message_of_reading(tmp_path)
    reader = reader_of(tmp_path, batch_size=ROWS, shuffle_rows=0, max_bad_share=0.5)
    (batch,) = reader
    assert reader.bad is not None
    assert reader.bad.counts() == {"unreadable": 15}
    assert batch.sparse_features["row"].values().tolist() == list(range(15))
    assert batch.labels[15:].isnan().all()


@more_workers_than_cores
def test_worker_processes_count_together(tmp_path: Path) -> None:
    write_split(tmp_path, table_with("place", 10), LAYOUT)
    reader = reader_of(tmp_path, batch_size=5, num_workers=2, max_bad_share=0.1)
    assert len(list(data_loader(reader))) == 6
    assert reader.bad is not None
    assert reader.bad.counts() == {"place": 1}


def test_a_column_that_serves_twice_is_checked_twice(tmp_path: Path) -> None:
    write_split(tmp_path, table_with("place", 4).drop_columns("user"), LAYOUT)  # Nulls, which a group may not hold.
    reader = reader_of(tmp_path, replace(SCHEMA, group="place"), batch_size=5, shuffle_rows=0)
    message = message_of(lambda: list(reader), DataError)
    assert message.endswith("part-0.parquet, row group 0, row 3, column 'place': null is not an integer.")
    write_split(tmp_path, log_table(ROWS))
    assert "column 'tags' is list" in message_of_opening(tmp_path, replace(SCHEMA, group="tags"))


def test_the_rows_before_a_bad_value_are_read(tmp_path: Path) -> None:
    write_split(tmp_path, table_with("place", 10), LAYOUT)
    iterator = iter(reader_of(tmp_path, batch_size=5, shuffle_rows=0))
    assert [len(next(iterator).labels) for _ in range(3)] == [5, 5, 5]
    with pytest.raises(DataError):
        next(iterator)


def test_the_command_line_prints_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")  # The rank that reads the row prints the message.
    write_split(tmp_path, table_with("tags", [1, None]), LAYOUT)
    with pytest.raises(SystemExit) as stopped:
        run_main(lambda: read_all(tmp_path))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == error_of_tags(tmp_path)


@pytest.mark.long
def test_the_command_line_prints_one_sentence_of_a_worker_process(tmp_path: Path) -> None:
    # A process of its own: torch waits 5 s per worker if the loader of a caught error is garbage-collected.
    write_split(tmp_path, table_with("tags", [1, None]), LAYOUT)
    code = f"from test_bad_data import *; run_main(lambda: read_all({str(tmp_path)!r}, num_workers=2))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env={**os.environ, "RANK": "3"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.endswith(error_of_tags(tmp_path))
    assert "Traceback" not in done.stderr


def test_a_damaged_page_is_named_by_its_row_group(tmp_path: Path) -> None:
    # Without checksums, which a writer can leave out, damage may look like other values.
    write_split(tmp_path, log_table(ROWS), LAYOUT, compression="none", write_page_checksum=True)
    path = tmp_path / "train/part-1.parquet"
    damage(path)
    assert re.fullmatch(
        re.escape(str(path)) + r", row group 1: cannot be read \(.+\); write the file again.",
        message_of_reading(tmp_path),
    )


def test_a_file_that_vanishes_is_named_with_its_row_group(tmp_path: Path) -> None:
    write_split(tmp_path, log_table(ROWS), LAYOUT)
    reader = reader_of(tmp_path, batch_size=5, shuffle_rows=0)
    (tmp_path / "train/part-1.parquet").unlink()
    message = message_of(lambda: list(reader), DataError)
    assert message.startswith(f"{tmp_path}/train/part-1.parquet, row group 0: cannot be read ([Errno 2]")


@pytest.mark.parametrize("size", [0, -1])
def test_a_truncated_file_is_named(tmp_path: Path, size: int) -> None:
    write_split(tmp_path, log_table(ROWS), LAYOUT)
    path = tmp_path / "train/part-1.parquet"
    path.write_bytes(path.read_bytes()[:size])
    assert re.fullmatch(
        re.escape(str(path)) + r" is not a whole Parquet file \(.+\); write it again.", message_of_opening(tmp_path)
    )


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    sentence = f"{tmp_path}/train holds no .parquet file; datasets/README.md shows the layout of a log."
    assert message_of_opening(tmp_path) == sentence
    (tmp_path / "train").mkdir()
    (tmp_path / "train/_readme.txt").touch()
    assert message_of_opening(tmp_path) == sentence
    write_split(tmp_path, log_table(0), [[0], [0]])
    assert message_of_opening(tmp_path) == f"the .parquet files of {tmp_path}/train hold no rows."


def test_counts_that_are_not_the_schemas_are_an_error(tmp_path: Path) -> None:
    write_split(tmp_path, log_table(ROWS), LAYOUT)
    split = Split(ROWS, {"like": LabelCounts(positives=10, missing=10)})
    reader_of(tmp_path, replace(SCHEMA, splits={"train": split}), batch_size=5)
    wrong = {
        "rows": (replace(split, rows=40), "30 rows, but schema.json says 40"),
        "missing": (
            replace(split, labels={"like": LabelCounts(10, 9)}),
            "10 rows without 'like', but schema.json says 9",
        ),
    }
    for each, sentence in wrong.values():
        assert message_of_opening(tmp_path, replace(SCHEMA, splits={"train": each})) == (
            f"{tmp_path}/train holds {sentence}; a file is missing or extra, or the counts in schema.json are wrong: "
            "they may be left out."
        )
    # A writer may leave out how many are missing.
    write_split(tmp_path, log_table(ROWS), LAYOUT, write_statistics=False)
    reader_of(tmp_path, replace(SCHEMA, splits={"train": wrong["missing"][0]}), batch_size=5)


def test_positives_that_are_not_the_schemas_are_noted_once_the_rows_are_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = {"like": TaskMetrics(0.5, 0.5, 0.7, 1, 1, rows=20, positives=10, gauc_groups=0, gauc_rows=0)}
    for positives in (10, 11):
        split = Split(ROWS, {"finish": LabelCounts(1, 1), "like": LabelCounts(positives, 10)})
        note_other_counts(replace(SCHEMA, splits={"valid": split}), "valid", metrics)
    note_other_counts(SCHEMA, "valid", metrics)
    assert capsys.readouterr().out == (
        "note: valid/ of the log has 10 rows in which 'like' is 1, but schema.json says 11\n"
    )


@pytest.mark.parametrize("name", ["tags", "like"])
def test_a_missing_column_is_named(tmp_path: Path, name: str) -> None:
    write_split(tmp_path, log_table(ROWS).drop_columns(name), LAYOUT)
    assert message_of_opening(tmp_path) == (
        f"{tmp_path}/train/part-0.parquet has no column '{name}'; schema.json names it."
    )


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    table = log_table(ROWS)
    write_split(tmp_path, table.append_column("place", table["row"]))
    assert "has several columns 'place'" in message_of_opening(tmp_path)


@pytest.mark.parametrize(
    ("name", "type_", "sentence"),
    [
        ("place", pa.binary(), "is binary in {path}; a sparse feature needs integers or lists of integers"),
        ("tags", pa.list_(pa.list_(pa.int32())), "{path}; a sparse feature needs"),
        ("age", pa.date32(), "is date32[day] in {path}; a dense feature needs numbers"),
        ("like", pa.string(), "is string in {path}; a label needs 0, 1 or null"),
        ("user", pa.list_(pa.int32()), "{path}; the group of gAUC needs integers or text"),
    ],
)
def test_a_wrong_type_is_named(tmp_path: Path, name: str, type_: pa.DataType, sentence: str) -> None:
    table = log_table(ROWS)
    wrong = table.set_column(table.schema.get_field_index(name), name, pa.nulls(ROWS, type_))
    write_split(tmp_path, wrong)
    message = message_of_opening(tmp_path)
    assert message.startswith(f"column '{name}' is {type_ if not pa.types.is_nested(type_) else 'list<'}")
    assert sentence.format(path=tmp_path / "train/part-0.parquet") in message


def test_lists_in_some_files_only_are_an_error(tmp_path: Path) -> None:
    table = log_table(ROWS)
    write_split(tmp_path, table, LAYOUT)
    scalar = table.set_column(1, "tags", pa.array(np.zeros(ROWS, np.int32)))
    write_split(tmp_path / "other", scalar)
    (tmp_path / "other/train/part-0.parquet").rename(tmp_path / "train/part-2.parquet")
    assert message_of_opening(tmp_path) == (
        f"column 'tags' is a list in only one of {tmp_path}/train/part-2.parquet and part-0.parquet; "
        "give it the same type in all files."
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"colour": "red"}, "colour"),
        ({"sparse_features": [{"name": "row", "num_embeddings": 3, "dim": 4}]}, "dim"),
        (
            {"sparse_features": [{"name": "row", "num_embeddings": 3.5}]},
            "sparse_features[0].num_embeddings is 3.5, but must be a whole number from 1 to 1099511627776.",
        ),
        ({"sparse_features": [{"name": "row", "num_embeddings": 3, "pooling": "max"}]}, "sparse_features[0].pooling"),
        ({"sparse_features": [{"name": "row", "num_embeddings": 3, "weights": 1}]}, "sparse_features[0].weights"),
        ({"sparse_features": [{"name": "row", "num_embeddings": 3, "embedding_dim": "8"}]}, "embedding_dim"),
        ({"sparse_features": [{"name": "row"}]}, "sparse_features[0].num_embeddings is missing."),
        ({"sparse_features": {"row": 3}}, "sparse_features is {'row': 3}, but must be a list."),
        ({"sparse_features": None}, "sparse_features is None, but must be a list."),
        ({"labels": "like"}, "labels is 'like', but must be a list."),
        ({"labels": [1]}, "labels[0] is 1, but must be text."),
        ({"facts": {"best_auc": "high"}}, "facts[best_auc] is 'high', but must be a number."),
        ({"facts": {"best_auc": None}}, "facts[best_auc] is None, but must be a number."),
        ({"splits": {"train": {"rows": "30", "labels": {}}}}, "rows"),
        ({"splits": {"train": {"rows": -1, "labels": {}}}}, "splits[train].rows is -1, but must be from 0 to"),
        (
            {"splits": {"train": {"rows": 30, "labels": {"likes": {"positives": 1, "missing": 0}}}}},
            "splits[train].labels[likes] is of no label; did you mean 'like'?",
        ),
        (
            {"splits": {"train": {"rows": 30, "labels": {"like": {"positives": 20, "missing": 11}}}}},
            "splits[train].labels[like] counts more than the 30 rows of the split.",
        ),
        ({"group": ""}, "group is '', but must be 1 to 200 bytes of printable text."),
        ({"labels": ["like", "a\nb"]}, r"labels[1] is 'a\nb', but must be 1 to 200 bytes of printable text."),
        ({"dense_features": ["age", "特" * 67]}, "dense_features[1] is '特特"),
        (
            {"sparse_features": [{"name": "row", "num_embeddings": 3, "weights": "\t"}]},
            r"sparse_features[0].weights is '\t', but",
        ),
        *(
            (
                {"sparse_features": [{"name": "row", "num_embeddings": size}]},
                f"sparse_features[0].num_embeddings is {shown}",
            )
            for size, shown in {
                True: "True, but must be a whole number from 1 to 1099511627776.",
                0: "0, but must be from 1 to 1099511627776.",
                -5: "-5, but",
                2**62: "4611686018427387904, but",
                1e3: "1000.0, but must be a whole number",
                "5": "'5', but must be a whole number",
                10**300: "1000",
            }.items()
        ),
    ],
)
def test_a_wrong_field_of_the_schema_is_named(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = Path(write_log(tmp_path, ROWS)) / SCHEMA_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    message = message_of(lambda: load_schema(str(tmp_path)), UserError)
    assert message.startswith(f"{path}: ")
    assert sentence in message


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"labels": [', "not whole JSON: EOF while parsing a list at line 1 column 12"),
        (b"[1]", "the content is [1], but must be a mapping of fields"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (b'{"labels": ["like"], "labels": ["finish"]}', "the key 'labels' stands twice in"),
        (b'{"facts": {"x": NaN}}', "not whole JSON: expected value at line 1 column 17"),
        (b"[" * 100_000, "not whole JSON: recursion limit exceeded"),
        (b'{"format": 1' + b"0" * 5000 + b"}", "not whole JSON: number out of range"),
    ],
)
def test_a_schema_that_is_no_json_object_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / SCHEMA_FILE).write_bytes(content)
    message = message_of(lambda: load_schema(str(tmp_path)), UserError)
    assert message.startswith(f"{tmp_path}/{SCHEMA_FILE}: {sentence}")


def test_a_folder_without_a_schema_is_named(tmp_path: Path) -> None:
    message = message_of(lambda: load_schema(str(tmp_path)), UserError)
    assert message.startswith(f"{tmp_path} holds no {SCHEMA_FILE}: ")


@pytest.mark.parametrize(
    ("schema", "chosen", "sentence"),
    [
        (
            SCHEMA,
            {"features": ("rows",)},
            "the log has no sparse feature 'rows', only row, tags, place; did you mean 'row'?",
        ),
        (SCHEMA, {"labels": ("likes",)}, "the log has no label 'likes', only finish, like; did you mean 'like'?"),
        (SCHEMA, {"labels": ("like", "like")}, "a label is named twice in like, like."),
        (replace(SCHEMA, labels=()), {}, "schema.json names no label; a log needs one."),
        (replace(SCHEMA, sparse_features=()), {}, "schema.json names no sparse feature; a log needs one."),
        (
            replace(SCHEMA, sparse_features=SCHEMA.sparse_features * 2),
            {},
            "a sparse feature is named twice in row, tags, place, row, tags, place.",
        ),
        (
            replace(SCHEMA, sparse_features=(*SCHEMA.sparse_features, SparseFeature("row", 7))),
            {"features": ("row",)},
            "a sparse feature is named twice in row, tags, place, row.",
        ),
        (replace(SCHEMA, dense_features=("age", "age")), {}, "a dense feature is named twice in age, age."),
        *(
            (
                schema,
                {},
                f"schema.json names the column '{name}' as {roles}, which it cannot be at once; leave it out of",
            )
            for schema, name, roles in [
                (replace(SCHEMA, labels=("place",)), "place", "a label and as a sparse feature"),
                (replace(SCHEMA, labels=("age",)), "age", "a label and as a dense feature"),
                (replace(SCHEMA, group="like"), "like", "a label and as the group"),
                (
                    replace(WEIGHTED, labels=("place_weight",)),
                    "place_weight",
                    "a label and as the weights of a feature",
                ),
                (replace(SCHEMA, dense_features=("row",)), "row", "a sparse feature and as a dense feature"),
                (replace(SCHEMA, group="age"), "age", "a dense feature and as the group"),
            ]
        ),
    ],
)
def test_a_wrong_choice_of_columns_is_named(schema: Schema, chosen: dict[str, Any], sentence: str) -> None:
    assert message_of(lambda: Columns.select(schema, **chosen), UserError).startswith(sentence)


def test_a_column_can_be_feature_and_group_or_dense_and_weights_and_a_label_the_feature_of_another_run() -> None:
    Columns.select(replace(SCHEMA, group="row"))
    Columns.select(replace(WEIGHTED, dense_features=("place_weight",)))
    schema = replace(SCHEMA, labels=("place", "like"))
    for features, labels in ((("place", "row"), ("like",)), (("row",), ("place", "like"))):
        assert Columns.select(schema, features=features, labels=labels).labels == labels
