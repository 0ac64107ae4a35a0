"""stem-prepare: ids of each kind, weights, and the steps of numbers, as computed by hand."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stem_torchrec.config.yaml_text import to_yaml
from stem_torchrec.data.schema import load_schema
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log
from stem_torchrec.preparation.transforms import read_transforms
from stem_torchrec.runtime.errors import UserError

from preparations import CSV, SPEC, column, prepare, spec_with
from prepared_logs import Rows, in_time, prepared, raw_rows, spec_of, split


@pytest.fixture(scope="module")
def rows() -> Rows:
    return raw_rows()


def test_the_most_frequent_values_keep_their_ids_and_the_others_are_unseen(tmp_path: Path, rows: Rows) -> None:
    features = {"user": None, "few": {"value": "user", "vocabulary": {"most_frequent": 3}}}
    log = prepared(tmp_path, rows, features=features)
    assert pq.read_table(log / "vocabulary" / "few.parquet").num_rows == 3
    for name in ("train", "valid"):
        written = split(log, name)
        assert written["few"] == [number if number <= 3 else 0 for number in written["user"]]


def test_edges_put_a_number_into_the_bucket_that_begins_below_it(tmp_path: Path) -> None:
    # A number below all edges is in the first bucket, and one on an edge in that which begins there.
    bucket = {"value": "user", "buckets": {"edges": [2, 3, 3.5]}, "vocabulary": {"min_count": 1}}
    log = prepare(tmp_path, spec_with(features={"bucket": bucket}), report=False)
    words = pq.read_table(log / "vocabulary" / "bucket.parquet").to_pydict()
    edges = dict(zip(words["id"], words["value"], strict=True))
    assert [edges.get(each) for each in column(log, "bucket")] == [2, 2, 3, 3.5] * 3


def test_weights_of_rows_and_labels_are_columns_that_the_schema_names(tmp_path: Path) -> None:
    labels = {"click": {"value": "click", "where": "user > 1", "weight": "user / 4"}}
    log = prepare(tmp_path, spec_with(labels=labels, weight="case when day = 1 then 2 else 1 end"), report=False)
    schema = load_schema(str(log))
    assert (schema.weight, dict(schema.label_weights)) == ("weight", {"click": "click_weight"})
    assert column(log, "weight") == [2.0] * 4 + [1.0] * 8
    assert column(log, "click_weight") == [0.25, 0.5, 0.75, 1.0] * 3
    clicks = [(user + day) % 2 for day in (1, 2, 3) for user in (1, 2, 3, 4)]
    assert column(log, "click") == [None if i % 4 == 0 else click for i, click in enumerate(clicks)]


def test_a_missing_number_becomes_the_mean_or_a_number_and_has_a_flag(tmp_path: Path) -> None:
    value = {"value": "nullif(user, 4)", "missing": {"flag": True}}
    dense = {
        "mean": value,
        "number": {**value, "missing": {"fill": -7}},
        "scaled": {**value, "standardize": True, "missing": {"flag": True}},
    }
    log = prepare(tmp_path, spec_with(dense=dense), report=False)
    assert column(log, "mean") == [1, 2, 3, 2] * 3
    assert column(log, "number") == [1, 2, 3, -7] * 3
    # The deviation of 1, 2 and 3; the mean of what is scaled is 0.
    np.testing.assert_allclose(column(log, "scaled"), np.array([-1, 0, 1, 0] * 3) / np.sqrt(2 / 3), rtol=1e-6)
    assert column(log, "mean_missing") == column(log, "scaled_missing") == [0, 0, 0, 1] * 3
    assert load_schema(str(log)).dense_features == ("mean", "mean_missing", "number", "scaled", "scaled_missing")


def test_quantiles_map_a_number_to_the_share_of_smaller_ones_of_train(tmp_path: Path, rows: Rows) -> None:
    shares = 50
    log = prepared(tmp_path, rows, dense={"price": {"quantiles": shares}})
    price = np.asarray(in_time(rows, "price"))
    train = np.sort(price[:300])
    for name, part in (("train", price[:300]), ("valid", price[300:])):
        smaller = np.searchsorted(train, part, side="left") / len(train)
        # Between two quantiles it is a line.
        np.testing.assert_allclose(split(log, name)["price"], smaller, atol=1.5 / shares)
    assert min(split(log, "train")["price"]) == 0
    assert max(split(log, "train")["price"]) == 1


def test_a_random_split_by_row_and_one_by_its_key_draw_their_shares(tmp_path: Path, rows: Rows) -> None:
    logs = []
    for name, key in (("a", []), ("b", ["time"])):
        (tmp_path / name).mkdir()
        part = {"random": {"seed": 1, "valid": 0.25, "test": 0.25}}
        logs.append(prepared(tmp_path / name, rows, split=part, row_key=key, order="source", keep=["time"]))
    for log in logs:
        parts = [split(log, name)["time"] for name in ("train", "valid", "test")]
        assert sorted(time for part in parts for time in part) == list(range(400))
        # Four standard deviations of 400 draws.
        assert [len(part) / 400 for part in parts] == pytest.approx([0.5, 0.25, 0.25], abs=0.1)
    assert split(logs[0], "train") != split(logs[1], "train")


def test_a_column_names_the_split_and_other_values_belong_to_none(tmp_path: Path) -> None:
    by_column = {"column": {"by": "day", "train": [3], "valid": [1]}}
    log = prepare(tmp_path, spec_with(split=by_column, keep=["day"]), report=False)
    assert {name: set(split(log, name)["day"]) for name in ("train", "valid")} == {"train": {3}, "valid": {1}}
    assert not (log / "test").exists()


DAYS = [
    "2022-05-03 00:00:00",
    "2022-05-03 23:59:59",
    "2022-05-04 00:30:00",
    "2022-05-04 12:00:00",
    "2022-05-05 09:00:00",
]


@pytest.mark.parametrize(
    ("by", "gap", "train", "valid"),
    [
        # A day is over at its end.
        ("time", 0, [0, 1], [2, 3]),
        ("time", 3600, [0, 1], [3]),
        ("to_date(substr(text, 1, 10))", 0, [0, 1], [2, 3]),
        ("to_date(substr(text, 1, 10))", 1, [0, 1], [4]),
    ],
)
def test_a_split_by_day_with_a_gap_of_seconds_or_days(
    by: str, gap: int, train: list[int], valid: list[int], tmp_path: Path
) -> None:
    lines = "".join(f"{i},{user % 2},{time},{time}\n" for i, time in enumerate(DAYS) for user in (1, 2))
    until = "2022-05-05" if valid == [4] else "2022-05-04"
    spec = spec_with(
        sources={"log": {"files": "log.csv", "columns": {"user": "int", "click": "int", "time": "timestamp"}}},
        split={"time": {"by": by, "train_until": "2022-05-03", "valid_until": until, "gap": gap}},
        keep=["user"],
        features={"id": {"value": "user"}},
    )
    log = prepare(tmp_path, spec, {"log.csv": f"user,click,time,text\n{lines}"}, report=False)
    assert [sorted({*split(log, name)["user"]}) for name in ("train", "valid")] == [train, valid]


def test_row_groups_have_the_size_of_the_spec(tmp_path: Path) -> None:
    lines = "".join(f"{i % 9},{i % 10 // 9 + 2},{i % 2}\n" for i in range(30_000))
    spec = spec_with(row_group_size=4096)
    log = prepare(tmp_path, spec, {"log.csv": f"user,day,click\n{lines}"}, report=False)
    metadata = pq.ParquetFile(log / "train" / "part-00000.parquet").metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sum(sizes) == 27_000
    # DuckDB ends a row group with the piece of 2,048 rows that makes it full.
    assert all(4096 <= size < 4096 + 2048 for size in sizes[:-1])


@pytest.mark.parametrize("serving", ["columns", "table"])
def test_transforms_tell_whether_a_served_row_comes_with_the_columns_of_a_side_table(
    serving: str, tmp_path: Path
) -> None:
    sources = {**SPEC["sources"], "users": {"files": "users.csv", "columns": {"user": "int"}}}
    join = {"source": "users", "on": "user", "serving": serving}
    users = "user,city\n1,a\n2,a\n3,b\n4,b\n"
    spec = spec_with(sources=sources, joins=[join], features={"city": {}})
    log = prepare(tmp_path, spec, {"log.csv": CSV, "users.csv": users}, report=False)
    content = json.loads((log / "transforms.json").read_text())
    assert [(each["source"], each["on"], each["serving"]) for each in content["joins"]] == [("users", "user", serving)]
    assert content["columns"]["city"] == "text"


def test_the_log_of_a_run_gives_its_vocabularies(tmp_path: Path, rows: Rows) -> None:
    first = prepared(tmp_path, rows)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml({"data": {"path": str(first)}}))
    spec = spec_of(tmp_path, rows, split={"time": {"by": "time", "train_until": 350, "valid_until": 399}})
    prepare_log(PrepareOptions(spec=str(spec), out=str(tmp_path / "next"), vocabularies=str(run)))
    old, new = (pq.read_table(log / "vocabulary" / "user.parquet") for log in (first, tmp_path / "next"))
    assert new.equals(old)


def test_transforms_of_a_newer_version_are_refused(tmp_path: Path, rows: Rows) -> None:
    file = prepared(tmp_path, rows) / "transforms.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with pytest.raises(UserError, match="has the format 2, but this stem_torchrec reads formats up to 1; install"):
        read_transforms(file.parent)
    spec = spec_of(tmp_path, rows)
    with pytest.raises(UserError, match="has the format 2, but this stem_torchrec reads formats up to 1; install"):
        prepare_log(PrepareOptions(spec=str(spec), out=str(tmp_path / "next"), vocabularies=str(file.parent)))
