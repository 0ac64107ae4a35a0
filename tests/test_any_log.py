"""The reader takes what writers write: types, nulls and NaNs, names and groups of any form, to the same batches."""

import json
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stem_torchrec.comparison.comparable import count_positives, read_keys
from stem_torchrec.data.batch import Exposures
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.label_kinds import has_mixed_group, label_kinds, may_lack_labels
from stem_torchrec.data.loader import data_loader
from stem_torchrec.data.schema import (
    DenseFeature,
    Label,
    LabelCounts,
    Schema,
    SparseFeature,
    Split,
    load_schema,
    save_schema,
)
from stem_torchrec.data.text_groups import numbers_of
from stem_torchrec.runtime.errors import DataError, UserError

from logs import SCHEMA, WEIGHTED, log_table, reader_of, weighted_table, write_split

ROWS = 31


def with_columns(table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def batch_of(folder: Path, table: pa.Table, schema: Schema = SCHEMA, **options: Any) -> Any:
    """All rows of a log in one batch."""
    write_split(folder, table)
    (batch,) = reader_of(folder, schema, batch_size=len(table), shuffle_rows=0, **options)
    return batch


def assert_same(batch: Any, expected: Any) -> None:
    for name in ("values", "lengths", "weights_or_none"):
        ours, other = (getattr(each.sparse_features, name)() for each in (batch, expected))
        assert (ours is None and other is None) or torch.equal(ours, other)
    assert torch.equal(batch.dense_features, expected.dense_features)
    assert torch.equal(batch.labels.nan_to_num(-1), expected.labels.nan_to_num(-1))


def error_of(call: Any, kind: type[UserError] = DataError) -> str:
    with pytest.raises(UserError) as raised:
        call()
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)
    return str(raised.value)


def error_of_reading(folder: Path, table: pa.Table, schema: Schema = SCHEMA) -> str:
    write_split(folder, table)
    return error_of(lambda: list(reader_of(folder, schema, batch_size=5, shuffle_rows=0)))


def error_of_opening(folder: Path, table: pa.Table, schema: Schema = SCHEMA) -> str:
    write_split(folder, table)
    return error_of(lambda: reader_of(folder, schema, batch_size=5), UserError)


@pytest.mark.parametrize("list_of", [pa.list_, pa.large_list, pa.list_view, pa.large_list_view])
def test_lists_of_every_kind_hold_features_and_weights(tmp_path: Path, list_of: Any) -> None:
    table = weighted_table(ROWS)
    lists = {"tags": list_of(pa.int16()), "tag_weights": list_of(pa.float64())}
    other = with_columns(table, {name: pa.array(table[name].to_pylist(), kind) for name, kind in lists.items()})
    assert_same(batch_of(tmp_path / "b", other, WEIGHTED), batch_of(tmp_path / "a", table, WEIGHTED))


def test_lists_of_a_fixed_size_hold_features_and_weights(tmp_path: Path) -> None:
    ids = [None if n % 4 == 1 else [n % 10, 3] for n in range(ROWS)]
    weights = [None if each is None else [0.5, 2.0] for each in ids]
    table = weighted_table(ROWS)
    lists = {"tags": pa.array(ids), "tag_weights": pa.array(weights)}
    pairs, floats = pa.list_(pa.int64(), 2), pa.list_(pa.float32(), 2)
    fixed = {"tags": pa.array(ids, pairs), "tag_weights": pa.array(weights, floats)}
    assert_same(
        batch_of(tmp_path / "a", with_columns(table, fixed), WEIGHTED),
        batch_of(tmp_path / "b", with_columns(table, lists), WEIGHTED),
    )
    ids[9] = [3, 10]
    bad = with_columns(table, {**fixed, "tags": pa.array(ids, pairs)})
    assert error_of_reading(tmp_path / "bad", bad, WEIGHTED).endswith(
        "row group 0, row 9, column 'tags': 10 is not an id in [0, 10), the table's rows in schema.json."
    )


def test_a_column_of_the_null_type_is_all_nulls_beside_any_other_file(tmp_path: Path) -> None:
    table = weighted_table(ROWS)
    nulls = {name: pa.nulls(ROWS) for name in ("tags", "tag_weights", "place", "place_weight", "like")}
    empty = {name: pa.nulls(ROWS, table.schema.field(name).type) for name in nulls}
    folders = [tmp_path / "typed", tmp_path / "null"]
    for folder, columns in zip(folders, (empty, nulls), strict=True):
        write_split(folder, table)
        pq.write_table(with_columns(table, columns), folder / "train/part-1.parquet")
    typed, untyped = (list(reader_of(each, WEIGHTED, batch_size=25, shuffle_rows=100)) for each in folders)
    for batch, expected in zip(untyped, typed, strict=True):
        assert_same(batch, expected)
    only_nulls = batch_of(tmp_path / "only", with_columns(table, nulls), WEIGHTED)
    assert_same(only_nulls, batch_of(tmp_path / "only_typed", with_columns(table, empty), WEIGHTED))
    lists = with_columns(table, {"tags": pa.array([[]] * ROWS), "tag_weights": pa.array([[]] * ROWS)})
    assert_same(batch_of(tmp_path / "lists", lists, WEIGHTED), batch_of(tmp_path / "e", with_columns(
        table, {"tags": empty["tags"], "tag_weights": empty["tag_weights"]}), WEIGHTED))  # fmt: skip


def test_a_column_of_the_null_type_is_refused_where_a_null_is(tmp_path: Path) -> None:
    message = error_of_reading(tmp_path, with_columns(log_table(3), {"user": pa.nulls(3)}))
    assert message.endswith("part-0.parquet, row group 0, row 0, column 'user': null is not an integer.")


def decimals(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array([None if value is None else Decimal(value) for value in values], kind)


@pytest.mark.parametrize(
    "kind", [pa.float16(), pa.float32(), pa.float64(), pa.decimal32(9, 2), pa.decimal128(20, 2), pa.decimal256(50, 1)]
)
def test_whole_floats_and_decimals_are_ids(tmp_path: Path, kind: pa.DataType) -> None:
    table = log_table(ROWS)
    columns = {"row": table["row"], "place": table["place"], "user": table["user"]}
    make = decimals if pa.types.is_decimal(kind) else lambda values, to: pa.array(np.array(values, float)).cast(to)
    other = with_columns(table, {name: make(column.to_pylist(), kind) for name, column in columns.items()})
    lists = pa.array([[float(i) for i in ids or []] for ids in table["tags"].to_pylist()])
    other = with_columns(other, {"tags": lists})
    expected = batch_of(tmp_path / "a", with_columns(table, {"tags": lists.cast(pa.list_(pa.int8()))}), training=False)
    batch = batch_of(tmp_path / "b", other, training=False)
    assert_same(batch.batch, expected.batch)
    assert torch.equal(batch.groups, expected.groups)


def test_nan_is_no_id_and_a_missing_label(tmp_path: Path) -> None:
    table, nan = log_table(ROWS), float("nan")
    places, likes = table["place"].to_pylist(), table["like"].to_pylist()
    floats = {
        "place": pa.array([nan if place is None else float(place) for place in places]),
        "like": pa.array([nan if like is None else float(like) for like in likes], pa.float32()),
    }
    assert_same(batch_of(tmp_path / "b", with_columns(table, floats)), batch_of(tmp_path / "a", table))
    columns = Columns.select(SCHEMA)
    row_groups = find_row_groups(str(tmp_path / "b"), "train", SCHEMA, columns)
    assert may_lack_labels(row_groups, columns)
    assert label_kinds(row_groups, columns, "like") == {0, 1}
    whole = Columns.select(SCHEMA, labels=("finish",))
    assert not may_lack_labels(row_groups, whole)
    # schema.json counts the missing labels, of which the footers know only the nulls.
    counted = Split(ROWS, {"like": LabelCounts(10, sum(like is None for like in likes))})
    find_row_groups(str(tmp_path / "b"), "train", replace(SCHEMA, splits={"train": counted}), columns)


WRONG_IDS = [
    ("place", pa.array([0.0, 1.5, 2]), "1.5 is not a whole number, as an id must be."),
    ("place", pa.array([0.0, float("inf"), 2]), "inf is not a whole number, as an id must be."),
    ("place", decimals(["1", "3.01", "2"], pa.decimal128(9, 2)), "3.01 is not a whole number, as an id must be."),
    ("place", decimals(["1", "1" * 25, "2"], pa.decimal256(40, 2)), "1111111111111111111111111.00 is not an id that"),
    ("place", pa.array([0.0, 10.0, 2]), "10.0 is not an id in [0, 10), the table's rows in schema.json."),
    ("place", pa.array([0.0, -1.0, 2]), "-1.0 is not an id in [0, 10), the table's rows in schema.json."),
    (
        "tags",
        pa.array([[1.0], [2.0, float("nan")], []]),
        "nan is not a whole number, as an id must be.",
    ),
    ("tags", pa.array([[1.0], [2.0, 0.25], []]), "0.25 is not a whole number, as an id must be."),
    ("user", pa.array([0.0, float("nan"), 2.0]), "nan is not an integer."),
    (
        "user",
        pa.array([0.0, 2.0**53 + 2, 2.0]),
        "9007199254740994.0 is not an id that double has exactly, as those up to 9007199254740992; write it as an "
        "integer.",
    ),
    (
        "user",
        pa.array([0.0, 2.0**24 + 2, 2.0], pa.float32()),
        "16777218.0 is not an id that float has exactly, as those up to 16777216; write it as an integer.",
    ),
]


@pytest.mark.parametrize(("name", "column", "sentence"), WRONG_IDS)
def test_a_number_that_is_no_id_is_named_with_its_place(
    tmp_path: Path, name: str, column: pa.Array, sentence: str
) -> None:
    message = error_of_reading(tmp_path, with_columns(log_table(3), {name: column}))
    assert message.startswith(f"{tmp_path}/train/part-0.parquet, row group 0, row 1, column '{name}': {sentence}")
    (batch,) = reader_of(tmp_path, batch_size=3, shuffle_rows=0, max_bad_share=0.4)
    assert batch.labels[1].isnan().all()


@pytest.mark.parametrize(
    "kind", [pa.bool_(), pa.int8(), pa.uint64(), pa.int64(), pa.decimal64(5, 1), pa.decimal128(5, 1), pa.float16()]
)
def test_dense_features_are_numbers_of_any_kind(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array([n % 2 for n in range(ROWS)])
    column = decimals(column.to_pylist(), kind) if pa.types.is_decimal(kind) else column.cast(kind)
    batch = batch_of(tmp_path, with_columns(log_table(ROWS), {"age": column}))
    assert batch.dense_features[:, 0].tolist() == [n % 2 for n in range(ROWS)]


FILLED = replace(SCHEMA, dense_features=(DenseFeature("age", fill=-1.5), "price"))


@pytest.mark.parametrize(
    "ages",
    [
        pa.array([None, 2, None, 4]),
        pa.array([float("nan"), 2, None, 4], pa.float16()),
        pa.array([None, 2.0, None, 4.0]),
    ],
)
def test_a_fill_takes_the_place_of_null_and_nan(tmp_path: Path, ages: pa.Array) -> None:
    batch = batch_of(tmp_path, with_columns(log_table(4), {"age": ages}), FILLED)
    assert batch.dense_features[:, 0].tolist() == [-1.5, 2, -1.5, 4]


def test_a_null_without_a_fill_and_an_infinity_are_errors_that_name_the_fix(tmp_path: Path) -> None:
    place = f"{tmp_path}/train/part-0.parquet, row group 0, row 1, column 'age': "
    for value, shown in ((None, "null"), (float("nan"), "nan")):
        assert error_of_reading(tmp_path, with_columns(log_table(2), {"age": pa.array([0, value], pa.float32())})) == (
            f'{place}{shown} is not a finite 32-bit float; schema.json may give {{"name": "age", "fill": 0.0}} in '
            "dense_features to take its place."
        )
    infinite = with_columns(log_table(2), {"age": pa.array([0, float("inf")])})
    assert error_of_reading(tmp_path, infinite, FILLED) == f"{place}inf is not a finite 32-bit float."


def texts_of(item: Exposures) -> list[str]:
    assert item.texts is not None
    return item.texts.to_pylist()


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_groups_may_be_text(tmp_path: Path, kind: str) -> None:
    names = [f"user-{n // 3} ü" for n in range(ROWS)]
    column = pa.array(names, getattr(pa, kind)() if kind != "dictionary" else None)
    column = column.dictionary_encode() if kind == "dictionary" else column
    write_split(tmp_path, with_columns(log_table(ROWS), {"user": column}), [[10, 5], [16]])
    items = list(data_loader(reader_of(tmp_path, batch_size=7, training=False, num_workers=1)))
    assert [text for item in items for text in texts_of(item)] == names
    groups = torch.cat([item.groups for item in items])
    assert groups.tolist() == numbers_of(pa.array(names)).tolist()
    assert len(groups.unique()) == len(set(names))
    # A rank without rows has them in the same type.
    (empty,) = reader_of(tmp_path, batch_size=99, rank=0, world_size=99, training=False)
    assert (empty.groups.dtype, texts_of(empty)) == (torch.int64, [])
    columns = Columns.select(SCHEMA)
    assert has_mixed_group(find_row_groups(str(tmp_path), "train", SCHEMA, columns), columns, "finish")
    assert list(reader_of(tmp_path, batch_size=7))


def test_a_group_is_text_in_all_files_or_in_none_and_never_null(tmp_path: Path) -> None:
    names = with_columns(log_table(3), {"user": pa.array(["a", None, ""])})
    assert error_of_reading(tmp_path, names).endswith("row group 0, row 1, column 'user': null is not text.")
    pq.write_table(log_table(3), tmp_path / "train/part-1.parquet")
    assert error_of(lambda: reader_of(tmp_path, batch_size=5), UserError) == (
        f"column 'user' is text in only one of {tmp_path}/train/part-1.parquet and part-0.parquet; give it the same "
        "type in all files."
    )
    (tmp_path / "train/part-1.parquet").unlink()
    assert error_of_opening(tmp_path, with_columns(log_table(3), {"user": pa.array([b"a"] * 3)})).startswith(
        f"column 'user' is binary in {tmp_path}/train/part-0.parquet; the group of gAUC needs integers or text. "
    )


def test_the_number_of_a_text_depends_on_the_text_alone() -> None:
    # So metrics of later versions and other machines compare with those of this one.
    texts = ["u1", "u2", "u1", "", "ü", "u1\0", "\0u1"]
    numbers = numbers_of(pa.array(texts))
    assert numbers.tolist()[:3] == [6164299741064563529, -8395957953877709814, 6164299741064563529]
    assert numbers_of(pa.array(["x", *texts]).slice(1)).tolist() == numbers.tolist()
    assert [int(numbers_of(pa.array([text]))[0]) for text in texts] == numbers.tolist()
    assert len(set(numbers.tolist())) == len(set(texts))
    similar = pa.array([f"{i:06d}" for i in range(200_000)] + ["a" * i for i in range(300)])
    assert len(np.unique(numbers_of(similar))) == len(similar)


DOTTED = Schema(
    sparse_features=(
        SparseFeature("row", 1000),
        SparseFeature("tags", 10, pooling="mean", weights="w/tags", embedding_dim=4, column="item.tags"),
        SparseFeature("place", 10, weights="place_weight", embedding_dim=12, column="user/place@v2"),
    ),
    labels=("finish", Label("like", column="fb.like/7d")),
    dense_features=(DenseFeature("age", column="user.age"), "price"),
    group="user",
)
"""As WEIGHTED, of columns with other names."""
NAMES = {
    "tags": "item.tags",
    "tag_weights": "w/tags",
    "place": "user/place@v2",
    "like": "fb.like/7d",
    "age": "user.age",
}


def test_a_column_of_any_name_is_read_under_an_alias(tmp_path: Path) -> None:
    table = weighted_table(ROWS)
    dotted = table.rename_columns([NAMES.get(name, name) for name in table.column_names])
    assert_same(batch_of(tmp_path / "a", dotted, DOTTED), batch_of(tmp_path / "b", table, WEIGHTED))
    counted = Split(ROWS, {"like": LabelCounts(10, 11)})
    find_row_groups(str(tmp_path / "a"), "train", replace(DOTTED, splits={"train": counted}), Columns.select(DOTTED))
    bad = with_columns(dotted, {"item.tags": pa.array([[99]] * ROWS)})
    assert "row 0, column 'item.tags': 99 is not an id" in error_of_reading(tmp_path / "a", bad, DOTTED)
    assert error_of_opening(tmp_path / "a", dotted.drop_columns("fb.like/7d"), DOTTED) == (
        f"{tmp_path}/a/train/part-0.parquet has no column 'fb.like/7d'; schema.json names it."
    )


def test_positives_are_counted_by_groups_of_text(tmp_path: Path) -> None:
    names = [f"u{n // 3}" for n in range(ROWS)]
    numbers, columns = log_table(ROWS), Columns.select(SCHEMA)
    write_split(tmp_path / "numbers", numbers)
    write_split(tmp_path / "texts", with_columns(numbers, {"user": pa.array(names)}))
    counts, keys = {}, {}
    for kind in ("numbers", "texts"):
        row_groups = find_row_groups(str(tmp_path / kind), "train", SCHEMA, columns)
        positives = count_positives(row_groups, columns, "user", ("finish", "like"))
        counts[kind] = dict(zip(positives.keys.tolist(), positives.counts.tolist(), strict=True))
        keys[kind] = read_keys(row_groups, columns, "user").tolist()
    assert keys["texts"] == numbers_of(pa.array(names)).tolist()
    assert [counts["texts"][key] for key in keys["texts"]] == [counts["numbers"][key] for key in keys["numbers"]]


def test_positives_outside_of_a_tasks_space_are_not_counted(tmp_path: Path) -> None:
    table = log_table(ROWS)
    write_split(tmp_path, table)
    columns = Columns.select(SCHEMA, spaces={"like": "finish"})
    row_groups = find_row_groups(str(tmp_path), "train", SCHEMA, columns)
    counted = count_positives(row_groups, columns, "user", ("finish", "like")).counts.sum(axis=0)
    finish, like = (np.array([y or 0 for y in table.column(task).to_pylist()]) for task in ("finish", "like"))
    assert counted.tolist() == [finish.sum(), (finish * like).sum()]
    assert (finish * like).sum() < like.sum()


def test_an_alias_counts_though_its_feature_is_not_selected() -> None:
    columns = Columns.select(replace(DOTTED, group="place"), features=("row",), labels=("finish",))
    assert columns.column_of("place") == "user/place@v2"


def test_an_alias_serves_as_group_and_one_column_as_two_names(tmp_path: Path) -> None:
    table = log_table(ROWS).rename_columns(["raw.row", *log_table(ROWS).column_names[1:]])
    for group in ("row", "raw.row"):
        features = (SparseFeature("row", 1000, column="raw.row"), SparseFeature("again", 1000, column="raw.row"))
        schema = replace(SCHEMA, sparse_features=features, group=group)
        item = batch_of(tmp_path, table, schema, training=False)
        assert item.groups.tolist() == item.batch.sparse_features["again"].values().tolist() == list(range(ROWS))


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        (
            replace(SCHEMA, dense_features=(DenseFeature("place", column="x"),)),
            "schema.json gives the name 'place' to the columns 'place' and 'x'; give each a name of its own.",
        ),
        (
            replace(SCHEMA, labels=(Label("liked", column="place"),)),
            "schema.json names the column 'place' as a label and as a sparse feature, which it cannot be at once;",
        ),
        (
            replace(SCHEMA, weight="like"),
            "schema.json names the column 'like' as a label and as the weight of rows, which it cannot be at once;",
        ),
        (
            replace(SCHEMA, label_weights={"like": "age"}),
            "schema.json names the column 'age' as a dense feature and as the weights of a label, which it cannot be",
        ),
    ],
)
def test_an_alias_and_a_weight_cannot_hide_that_a_column_serves_twice(schema: Schema, sentence: str) -> None:
    assert error_of(lambda: Columns.select(schema), UserError).startswith(sentence)


def test_a_label_has_the_kind_binary(tmp_path: Path) -> None:
    save_schema(SCHEMA, str(tmp_path))
    file = tmp_path / "schema.json"
    content = json.loads(file.read_text())
    content["labels"] = ["finish", {"name": "like", "kind": "binary"}]
    file.write_text(json.dumps(content))
    assert load_schema(str(tmp_path)).labels == ("finish", Label("like"))


def test_a_schema_says_only_what_differs_and_comes_back(tmp_path: Path) -> None:
    schema = replace(
        DOTTED,
        weight="w",
        label_weights={"like": "lw"},
        dense_features=(*DOTTED.dense_features, *FILLED.dense_features[:1]),
    )
    save_schema(schema, str(tmp_path))
    assert load_schema(str(tmp_path)) == schema
    text = json.loads((tmp_path / "schema.json").read_text())
    assert text["format"] == 1
    assert text["labels"] == ["finish", {"name": "like", "column": "fb.like/7d"}]
    assert text["dense_features"] == [
        {"name": "age", "column": "user.age"},
        "price",
        {"name": "age", "fill": -1.5},
    ]
    assert (text["weight"], text["label_weights"]) == ("w", {"like": "lw"})
    # What earlier versions do not know is left out where it says nothing.
    save_schema(replace(SCHEMA, dense_features=(DenseFeature("age"),), labels=(Label("like"),)), str(tmp_path))
    text = json.loads((tmp_path / "schema.json").read_text())
    assert (text["dense_features"], text["labels"]) == (["age"], ["like"])
    assert not {"weight", "label_weights"} & set(text)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": [{"name": "like", "kind": "count"}]}, "labels[0].kind is 'count', but must be 'binary'"),
        (
            {"dense_features": [{"name": "age", "fil": 0}]},
            "there is no field 'dense_features[0].fil'; did you mean 'fill'?",
        ),
        (
            {"dense_features": [{"name": "age", "fill": "0"}]},
            "dense_features[0].fill is '0', but must be a number from",
        ),
        ({"dense_features": [{"name": "age", "fill": 1e39}]}, "dense_features[0].fill is 1e+39, but must be from"),
        ({"dense_features": [{"fill": 1}]}, "dense_features[0].name is missing."),
        (
            {"labels": [{"name": "like", "column": ""}]},
            "labels[0].column is '', but must be 1 to 200 bytes of printable",
        ),
        ({"labels": [["like"]]}, "labels[0] is ['like'], but must be a mapping of fields."),
        ({"label_weights": {"lik": "w"}}, "label_weights[lik] is of no label; did you mean 'like'?"),
        ({"weight": ["w"]}, "weight is ['w'], but must be text."),
        ({"weight": "\n"}, r"weight is '\n', but must be 1 to 200 bytes of printable text."),
    ],
)
def test_a_wrong_entry_of_the_schema_is_named(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    save_schema(SCHEMA, str(tmp_path))
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    message = error_of(lambda: load_schema(str(tmp_path)), UserError)
    assert message.startswith(f"{path}: {sentence}")
