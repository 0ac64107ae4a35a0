"""stem-prepare: ids, splits, order, constants of train, and what is left of a call that does not come to its end."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.schema import load_schema
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log
from stem_torchrec.runtime.errors import UserError

from prepared_logs import ROWS, Rows, in_time, prepared, raw_rows, spec_of, split


@pytest.fixture(scope="module")
def rows() -> Rows:
    return raw_rows()


def test_ids_follow_the_count_in_train_then_the_value_and_zero_is_unseen(tmp_path: Path, rows: Rows) -> None:
    log = prepared(tmp_path, rows, features={"user": {"vocabulary": {"min_count": 3}}, "city": None})
    for name in ("user", "city"):
        values = in_time(rows, name)
        train = [value for value in values[:300] if value != ""]
        counts = {
            value: train.count(value) for value in set(train) if train.count(value) >= (3 if name == "user" else 2)
        }
        ordered = sorted(counts, key=lambda value, counts=counts: (-counts[value], value))
        ids = {value: i + 1 for i, value in enumerate(ordered)}
        assert split(log, "train")[name] == [ids.get(value, 0) for value in values[:300]]
        assert split(log, "valid")[name] == [ids.get(value, 0) for value in values[300:]]
        vocabulary = pq.read_table(log / "vocabulary" / f"{name}.parquet").to_pydict()
        assert vocabulary == {"value": ordered, "id": list(ids.values()), "count": [counts[v] for v in ordered]}


def test_a_missing_value_is_unseen_or_has_an_id_of_its_own_or_none(tmp_path: Path, rows: Rows) -> None:
    features = {name: {"value": "city", "missing": name} for name in ("unseen", "own", "none")}
    train = split(prepared(tmp_path, rows, features=features), "train")
    missing = [i for i, city in enumerate(in_time(rows, "city")[:300]) if not city]
    assert missing
    assert {(train["unseen"][i], train["own"][i], train["none"][i]) for i in missing} == {(0, 1, None)}
    present = set(range(300)) - set(missing)
    assert all(train["own"][i] == train["unseen"][i] + 1 == train["none"][i] + 1 for i in present)


def test_lists_keep_their_order_and_features_share_an_id_space(tmp_path: Path, rows: Rows) -> None:
    lists = "ints(split(tags, '|'))"
    features = {"first": {"value": "element(ints(split(tags, '|')), 1)", "missing": "none"}}
    features["tags"] = {"value": lists, "pooling": "mean", "vocabulary": {"of": "first"}}
    log = prepared(tmp_path, rows, features=features)
    vocabulary = pq.read_table(log / "vocabulary" / "first.parquet").to_pydict()
    ids = dict(zip(vocabulary["value"], vocabulary["id"], strict=True))
    tags = [[int(tag) for tag in text.split("|") if tag] for text in in_time(rows, "tags")[:300]]
    train = split(log, "train")
    # An empty cell is no list, which a reader takes for an empty one.
    assert train["tags"] == [[ids.get(tag, 0) for tag in row] or None for row in tags]
    assert train["first"] == [ids.get(row[0], 0) if row else None for row in tags]
    schema = load_schema(str(log))
    assert [feature.num_embeddings for feature in schema.sparse_features] == [len(ids) + 1] * 2


def test_buckets_and_scales_have_exact_constants_of_train(tmp_path: Path, rows: Rows) -> None:
    dense = {"scaled": {"value": "price", "log": True, "clip": [0.1, 0.9], "standardize": True}}
    features = {"user": None, "bucket": {"value": "price", "buckets": {"quantiles": 7}}}
    log = prepared(tmp_path, rows, features=features, dense=dense)
    price = np.asarray(in_time(rows, "price"))
    train = np.sort(price[:300])
    edges = np.unique([train[i * 299 // 7] for i in range(7)])
    assert sorted(pq.read_table(log / "vocabulary" / "bucket.parquet")["value"].to_pylist()) == edges.tolist()
    logs = np.log1p(price)
    low, high = (np.quantile(logs[:300], share, method="lower") for share in (0.1, 0.9))
    clipped = np.clip(logs, low, high)
    expected = (clipped - clipped[:300].mean()) / clipped[:300].std()
    # The columns are float32.
    np.testing.assert_allclose(split(log, "valid")["scaled"], expected[300:], rtol=1e-6, atol=1e-6)


def test_conditions_are_dense_features_and_constants_are_values_like_others(tmp_path: Path, rows: Rows) -> None:
    dense = {
        "dear": {"value": "price > 8"},
        "scaled": {"value": "price > 8", "log": True, "standardize": True, "missing": {"flag": True}},
        "nothing": {"value": "null"},
        "one_and_a_half": {"value": "1.5", "clip": [0, 1]},
    }
    features = {"user": None, "same": {"value": "'a'"}}
    log = prepared(tmp_path, rows, features=features, dense=dense, where="true", weight="2.5")
    train = split(log, "train")
    dear = [float(price > 8) for price in in_time(rows, "price")[:300]]
    assert train["dear"] == dear
    scaled = np.log1p(dear)
    np.testing.assert_allclose(train["scaled"], (scaled - scaled.mean()) / scaled.std(), rtol=1e-6, atol=1e-6)
    for name, value in {"scaled_missing": 0, "nothing": 0, "one_and_a_half": 1.5, "same": 1, "weight": 2.5}.items():
        assert set(train[name]) == {value}, name


def test_a_random_split_draws_users_by_their_md5(tmp_path: Path, rows: Rows) -> None:
    log = prepared(
        tmp_path,
        rows,
        split={"random": {"by": ["user"], "seed": 3, "valid": 0.2, "test": 0.2}},
        order="source",
        group="user",
        keep=["time"],
    )
    part = {
        user: int(hashlib.md5(f"rows 3 {user}".encode()).hexdigest()[:13], 16) / 16**13 for user in set(rows["user"])
    }
    bounds = {"train": (0, 0.6), "valid": (0.6, 0.8), "test": (0.8, 1)}
    for name, (low, high) in bounds.items():
        drawn = [i for i, user in enumerate(rows["user"]) if low <= part[user] < high]
        assert split(log, name)["group_user"] == [rows["user"][i] for i in drawn]
        assert split(log, name)["time"] == [rows["time"][i] for i in drawn]
    assert load_schema(str(log)).group == "group_user"


def test_rows_in_the_gap_belong_to_no_split(tmp_path: Path, rows: Rows) -> None:
    log = prepared(
        tmp_path, rows, split={"time": {"by": "time", "train_until": 99, "valid_until": 349, "gap": 50}}, keep=["time"]
    )
    times = {name: (min(part := split(log, name)["time"]), max(part)) for name in ("train", "valid", "test")}
    assert times == {"train": (0, 99), "valid": (150, 349), "test": (350, 399)}


def test_the_first_of_equal_rows_stays(tmp_path: Path, rows: Rows) -> None:
    log = prepared(tmp_path, rows, deduplicate={"by": ["user"]}, keep=["time", "user"], features={"city": None})
    kept = sorted([*split(log, "train")["time"], *split(log, "valid")["time"]])
    firsts = {user: time for user, time in reversed(list(zip(rows["user"], rows["time"], strict=True)))}
    assert kept == sorted(firsts.values())


def test_a_shuffled_log_has_all_rows_in_an_order_of_the_key_alone(tmp_path: Path, rows: Rows) -> None:
    logs = []
    for name, order in (("a", range(ROWS)), ("b", reversed(range(ROWS)))):
        (tmp_path / name).mkdir()
        moved = {column: [values[i] for i in order] for column, values in rows.items()} if name == "a" else rows
        logs.append(prepared(tmp_path / name, moved, order="shuffle", row_key=["time"], keep=["time"]))
    first, second = (split(log, "train")["time"] for log in logs)
    assert first == second
    assert sorted(first) == list(range(300)) != first


def test_the_next_call_goes_on_with_what_an_interrupted_one_has_done(tmp_path: Path, rows: Rows) -> None:
    whole = prepared(tmp_path, rows)
    expected = split(whole, "train")
    shutil.rmtree(whole)
    options = PrepareOptions(spec=str(tmp_path / "spec.yaml"), out=str(whole))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stem_torchrec.preparation.make_log.write_splits", _full_disk)
        with pytest.raises(OSError, match="No space left"):
            prepare_log(options)
    # The same size and time, other content: only what was kept can still give the log.
    raw = tmp_path / "raw.csv"
    status, text = raw.stat(), raw.read_text()
    raw.write_text(text.replace("rome", "oslo"))
    os.utime(raw, ns=(status.st_atime_ns, status.st_mtime_ns))
    prepare_log(options)
    assert split(whole, "train") == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "raw.csv", "spec.yaml"]


def _full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_nothing_is_left_of_a_log_whose_spec_is_wrong(tmp_path: Path, rows: Rows) -> None:
    spec = spec_of(tmp_path, rows, labels={"click": "price"})
    with pytest.raises(UserError, match="must be 0, 1 or missing"):
        prepare_log(PrepareOptions(spec=str(spec), out=str(tmp_path / "log")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw.csv", "spec.yaml"]
