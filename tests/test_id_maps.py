"""Which row of yesterday's table a row of today's continues, by what the logs tell of their ids."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import Schema, SparseFeature, load_schema
from stem_torchrec.data.vocabulary_values import fingerprint
from stem_torchrec.expressions.hashes import hash_id
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.starting.id_maps import IdMap, LogIds, map_ids
from stem_torchrec.starting.id_spaces import IdSpace, read_id_spaces
from stem_torchrec.starting.match_tables import _Ids
from stem_torchrec.starting.scales import note_of_other_scales, read_scales

from prepared_logs import Rows, prepared, raw_rows

OLD = ["rome", "oslo", "bonn"]


def ids_of(folder: Path, values: list[Any], *, missing: int | None = None, rows: int | None = None) -> LogIds:
    """The ids of a log whose feature `city` has these values, the most frequent one first."""
    first = 1 if missing is None else 2
    table = pa.table(
        {
            "value": values,
            "id": pa.array(range(first, first + len(values)), pa.int64()),
            "count": range(len(values), 0, -1),
        }
    )
    (folder / "vocabulary").mkdir(parents=True)
    pq.write_table(table, folder / "vocabulary" / "city.parquet")
    kind = "text" if isinstance(values[0], str) else "int"
    tree = {"call": "vocabulary", "arguments": [{"column": "city"}], "parameters": {"name": "city"}}
    entry = {"type": kind, "first_id": first, "missing_id": missing, "features": ["city"]}
    content = {"format": 1, "features": {"city": tree}, "vocabularies": {"city": entry}}
    (folder / "transforms.json").write_text(json.dumps(content))
    schema = Schema(sparse_features=(SparseFeature("city", rows or first + len(values)),), labels=("like",))
    return LogIds(str(folder), read_id_spaces(str(folder), Columns.select(schema)))


def other(kind: str, rows: int, **fields: Any) -> LogIds:
    """The ids of a log without vocabularies."""
    return LogIds("NEW", {"city": IdSpace(kind, rows, **fields)})


def hashed(buckets: int, *, salt: str = "", hashes: int = 1) -> LogIds:
    return other("hash", buckets + 1, buckets=buckets, salt=salt, hashes=hashes, missing_id=buckets)


def city(old: LogIds, new: LogIds, *, by_hash: bool = False) -> IdMap:
    return map_ids(old, new, name="runs/a", hashed=by_hash)["city"]


def rows_of(id_map: IdMap) -> list[int] | None:
    return None if id_map.rows is None else id_map.rows.tolist()


def refusal(old: LogIds, new: LogIds) -> str:
    with pytest.raises(UserError) as error:
        city(old, new)
    return str(error.value)


def test_the_same_vocabulary_and_a_grown_one_are_known_when_the_old_log_is_gone(tmp_path: Path) -> None:
    old = replace(ids_of(tmp_path / "old", OLD), log="GONE")
    assert city(old, ids_of(tmp_path / "same", OLD)) == IdMap(4, 4)
    assert city(old, ids_of(tmp_path / "grown", [*OLD, "kiev", "riga"])) == IdMap(4, 6)


@pytest.mark.parametrize("values", [["a", "", "ß", "bc"], [3, -1, 2**40, 0], [0.5, 2.0, -1.0, 3.5]])
def test_a_fingerprint_is_of_the_values_and_their_order_alone(values: list[Any]) -> None:
    whole = pa.array(values)
    first = fingerprint(whole.slice(0, 3), 3)
    assert fingerprint(whole, 3) == first
    assert fingerprint(pa.concat_arrays([pa.array(values[:1]), whole]).slice(1), 3) == first
    assert fingerprint(whole, 4) != first
    assert fingerprint(pa.array([values[1], values[0], values[2]]), 3) != first


def test_texts_of_other_lengths_have_another_fingerprint() -> None:
    assert fingerprint(pa.array(["ab", "c"]), 2) != fingerprint(pa.array(["a", "bc"]), 2)


def test_a_vocabulary_in_another_order_is_matched_by_value(tmp_path: Path) -> None:
    old, new = ids_of(tmp_path / "old", OLD), ids_of(tmp_path / "new", ["bonn", "kiev", "rome"])
    id_map = city(old, new)
    assert rows_of(id_map) == [0, 3, -1, 1]  # Unseen, bonn, kiev, rome.
    assert id_map.how == "matched by value"


def test_a_pruned_vocabulary_continues_the_rows_of_its_values(tmp_path: Path) -> None:
    id_map = city(ids_of(tmp_path / "old", OLD), ids_of(tmp_path / "new", OLD[:2]))
    assert (id_map.old_rows, id_map.new_rows, rows_of(id_map)) == (4, 3, [0, 1, 2])


def test_an_id_of_its_own_for_missing_values_moves_the_others(tmp_path: Path) -> None:
    plain, own = ids_of(tmp_path / "plain", OLD), ids_of(tmp_path / "own", OLD, missing=1)
    assert rows_of(city(plain, own)) == [0, -1, 1, 2, 3]
    assert rows_of(city(own, plain)) == [0, 2, 3, 4]
    again = ids_of(tmp_path / "again", OLD[::-1], missing=1)
    assert rows_of(city(own, again)) == [0, 1, 4, 3, 2]


def test_values_of_a_log_that_has_grown_since_are_still_matched(tmp_path: Path) -> None:
    old = ids_of(tmp_path / "old", [*OLD, "riga"])
    # The run was trained when the log had three values.
    trained = IdSpace(
        "vocabulary", 4, vocabulary="city", type="text", first_id=1, values=3, fingerprint=fingerprint(pa.array(OLD), 3)
    )
    id_map = city(LogIds(old.log, {"city": trained}), ids_of(tmp_path / "new", ["riga", "bonn"]))
    assert rows_of(id_map) == [0, -1, 3]


def test_other_ids_without_the_old_log_name_the_command_that_keeps_them(tmp_path: Path) -> None:
    old = replace(ids_of(tmp_path / "old", OLD), log="/gone/log")
    sentence = refusal(old, ids_of(tmp_path / "new", OLD[::-1]))
    assert "prepare the new log with --vocabularies /gone/log --grow, which keeps the old ids." in sentence
    # Another log has taken the place of the old one.
    taken = ids_of(tmp_path / "taken", ["a", "b", "c"])
    assert "has another vocabulary now" in refusal(replace(old, log=taken.log), ids_of(tmp_path / "third", OLD[:2]))
    assert "prepare the log of each day in a folder of its own" in refusal(replace(old, log=taken.log), taken)


def test_the_vocabulary_of_another_feature_is_refused(tmp_path: Path) -> None:
    old = ids_of(tmp_path / "old", OLD)
    assert "it has no value in common with it" in refusal(old, ids_of(tmp_path / "none", ["x", "y"]))
    assert "its values are int, not text" in refusal(old, ids_of(tmp_path / "type", [1, 2, 3]))


def test_a_log_whose_schema_does_not_fit_its_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_embeddings 9 for 'city', but its vocabulary has 4 ids"):
        ids_of(tmp_path, OLD, rows=9)
    (tmp_path / "transforms.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot be read \('features' is missing\); prepare the log again"):
        read_id_spaces(str(tmp_path), Columns({}, (), (), group=None))


def test_without_transforms_ids_are_carried_by_number(tmp_path: Path) -> None:
    old = other("unknown", 10)
    assert city(old, other("unknown", 10)) == IdMap(10, 10, how="by their number alone")
    assert city(old, other("unknown", 13)) == IdMap(10, 13, how="by their number alone")
    sentence = refusal(old, other("unknown", 9))
    assert sentence.startswith("the tables of 'city' would shrink from 10 rows in runs/a to 9, ")
    assert sentence.endswith("keep the old ids: num_embeddings 10 or more in schema.json")
    prepared_before = LogIds("OLDLOG", {"city": IdSpace("vocabulary", 10, vocabulary="city")})
    assert refusal(prepared_before, other("unknown", 9)).endswith("stem-prepare ... --vocabularies OLDLOG --grow")


def test_ids_that_are_values_may_grow_and_keep_the_row_of_missing_ones() -> None:
    assert city(other("identity", 10), other("identity", 12)) == IdMap(10, 12, unseen=None)
    own = city(other("identity", 4, missing_id=3), other("identity", 6, missing_id=5))
    assert rows_of(own) == [0, 1, 2, -1, -1, 3]
    assert "give the feature an identity of at least 10" in refusal(other("identity", 10), other("identity", 9))


def test_only_a_vocabulary_has_a_row_of_unseen_values() -> None:
    ids = city(other("identity", 10), other("identity", 12))
    assert _Ids.count(ids, "unseen").weight_rows is None
    grown = IdMap(10, 12)
    assert _Ids.count(grown, "unseen").weight_rows.tolist() == [*range(10), 0, 0]


def test_hashes_carry_over_only_if_they_are_equal() -> None:
    assert city(hashed(10, salt="a"), hashed(10, salt="a")) == IdMap(11, 11, unseen=None)
    assert "so no id keeps its meaning; give the same hash, or" in refusal(hashed(10), hashed(12))
    assert "so no id keeps its meaning" in refusal(hashed(10), hashed(10, salt="b"))
    assert city(hashed(10, hashes=2), hashed(10, hashes=2)) == IdMap(11, 11, unseen=None)
    fresh = city(hashed(10, hashes=2), hashed(12, hashes=2))
    assert rows_of(fresh) == [-1] * 13
    assert fresh.how == "fresh, as hashes differ"


def test_a_vocabulary_becomes_a_hash_only_on_request(tmp_path: Path) -> None:
    sentence = refusal(ids_of(tmp_path / "old", OLD), hashed(2))
    assert "add --start.hash-ids to continue rows" in sentence
    assert "are by hash in NEW, but by identity" in refusal(other("identity", 5), hashed(2))


def test_a_bucket_continues_the_row_of_its_most_frequent_value(tmp_path: Path) -> None:
    values = [f"city {i}" for i in range(20)]
    id_map = city(ids_of(tmp_path / "old", values), hashed(7, salt="s"), by_hash=True)
    buckets = [hash_id(value, 7, "s") for value in values]
    expected = [buckets.index(b) + 1 if b in buckets else -1 for b in range(7)]
    assert rows_of(id_map) == [*expected, 0]  # A missing value was as an unseen one.
    assert id_map.how == "hashed"
    # The counts of all logs so far tell which is the most frequent, not the ids.
    path = tmp_path / "old" / "vocabulary" / "city.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(2, "count", pa.array(range(20))), path)
    last = {b: i + 1 for i, b in enumerate(buckets)}
    again = city(LogIds(str(tmp_path / "old"), read_again(tmp_path / "old")), hashed(7, salt="s"), by_hash=True)
    assert rows_of(again) == [*(last.get(b, -1) for b in range(7)), 0]


def read_again(folder: Path) -> dict[str, IdSpace]:
    return read_id_spaces(
        str(folder), Columns.select(Schema(sparse_features=(SparseFeature("city", 21),), labels=("x",)))
    )


@pytest.mark.parametrize("values", [["rome", "oslo"], [17, 4]])
def test_a_value_continues_the_row_of_its_bucket(tmp_path: Path, values: list[Any]) -> None:
    id_map = city(hashed(7), ids_of(tmp_path / "new", values, missing=1), by_hash=True)
    assert rows_of(id_map) == [-1, 7, *(hash_id(str(value), 7, "") for value in values)]


def test_refusals_are_on_the_page(tmp_path: Path) -> None:
    old = replace(ids_of(tmp_path / "old", OLD), log="OLD")
    others = ids_of(tmp_path / "others", ["x", "y"])
    cases = {
        "other values than yesterday's, whose log is gone": (old, ids_of(tmp_path / "again", OLD[::-1])),
        "a vocabulary of another feature": (ids_of(tmp_path / "whole", OLD), others),
        "a table that would shrink, without transforms.json": (other("unknown", 10), hashed(8)),
        "the same, of a log without transforms.json after one with a vocabulary": (
            replace(old, spaces={"city": replace(old.spaces["city"], rows=10)}),
            other("unknown", 9),
        ),
        "another hash": (hashed(10, salt="a"), hashed(12, salt="a")),
        "a hash in the place of a vocabulary": (old, hashed(8)),
    }
    page = (Path(__file__).parents[1] / "docs" / "day_two.md").read_text()
    for name, (before, after) in cases.items():
        sentence = re.sub(rf"{tmp_path}/\w+|NEW", "NEW", refusal(before, after).replace(f"{tmp_path}/whole", "OLD"))
        sentence = re.sub(
            r"but OLD/.* prepare the log again", "but OLD/vocabulary/city.parquet cannot be read (...)", sentence
        )
        assert f"| {name} | {sentence.replace('runs/a', 'RUN')} |" in page


@pytest.fixture(scope="module")
def rows() -> Rows:
    return raw_rows()


def test_prepared_logs_tell_what_their_ids_mean(tmp_path: Path, rows: Rows) -> None:
    features: dict[str, Any] = {
        "user": None,
        "user_too": {"value": "user", "vocabulary": {"of": "user"}},
        "city": {"missing": "own"},
        "city_hash": {"value": "city", "hash": {"buckets": 8, "salt": "s"}},
        "city_hashes": {"value": "city", "hash": {"buckets": 8, "hashes": 2}},
        "time": {"identity": 400, "missing": "own"},
        "click_id": {"value": "click", "identity": 2},
    }
    log = prepared(tmp_path, rows, features=features)
    schema = load_schema(str(log))
    spaces = read_id_spaces(str(log), Columns.select(schema))
    sizes = {feature.name: feature.num_embeddings for feature in schema.sparse_features}
    assert {name: space.rows for name, space in spaces.items()} == sizes
    assert spaces["user"] == spaces["user_too"]
    assert (spaces["city"].type, spaces["city"].first_id, spaces["city"].missing_id) == ("text", 2, 1)
    assert spaces["city_hash"] == IdSpace("hash", 9, missing_id=8, buckets=8, salt="s", hashes=1)
    assert spaces["city_hashes"] == IdSpace("hash", 9, missing_id=8, buckets=8, salt="", hashes=2)
    assert spaces["time"] == IdSpace("identity", 401, missing_id=400)
    assert spaces["click_id"] == IdSpace("identity", 2)
    # The ids that preparation gave are the rows that a hash continues.
    both = map_ids(
        LogIds(str(log), {"x": spaces["city"]}), LogIds(str(log), {"x": spaces["city_hash"]}), name="a", hashed=True
    )["x"]
    columns = pq.read_table(log / "train").to_pydict()
    vocabulary = pq.read_table(log / "vocabulary" / "city.parquet")
    buckets = [hash_id(value, 8, "s") for value in vocabulary["value"].to_pylist()]
    firsts = {bucket: buckets.index(bucket) + 2 for bucket in buckets} | {8: 1}
    assert both.rows is not None
    assert {h: both.rows[h].item() for h in columns["city_hash"]} == {h: firsts[h] for h in columns["city_hash"]}


def test_numbers_and_buckets_that_two_logs_make_otherwise_are_told(tmp_path: Path) -> None:
    def scales(name: str, mean: float, edge: float = 1.0) -> dict[str, str]:
        (tmp_path / name).mkdir()
        number = {"column": "price"}
        tree = {"call": "standardize", "arguments": [number], "parameters": {"mean": mean, "deviation": 1.0}}
        bucket = {"call": "bucket", "arguments": [number], "parameters": {"edges": [edge]}}
        features = {"band": {"call": "coalesce", "arguments": [bucket, {"literal": 0}]}, "city": {"column": "city"}}
        dense = {"price": tree, "age": {"column": "age"}}
        content = {"format": 1, "features": features, "dense": dense, "vocabularies": {}}
        (tmp_path / name / "transforms.json").write_text(json.dumps(content))
        return read_scales(str(tmp_path / name), columns)

    sparse = (SparseFeature("city", 3), SparseFeature("band", 3))
    columns = Columns.select(Schema(sparse_features=sparse, labels=("like",), dense_features=("price", "age")))
    monday, tuesday, wednesday = scales("monday", 1.0), scales("tuesday", 1.0), scales("wednesday", 2.0, 1.5)
    logs = {"run": "runs/a", "old_log": "monday", "log": "wednesday"}
    assert note_of_other_scales(monday, tuesday, **logs) is None
    note = note_of_other_scales(monday, wednesday, **logs)
    assert note is not None
    assert note.startswith("price, band are scaled otherwise in wednesday than in the log of runs/a, so predictions")
    assert note.endswith("with stem-prepare ... --vocabularies monday --grow, which keeps scales, edges and ids")
    # A log that has taken the place of the run's own one.
    note = note_of_other_scales(monday, scales("third", 1.5), **logs | {"log": "monday"})
    assert note is not None
    assert note.startswith("price is scaled otherwise")
    assert "nothing has the old scale" in note
    assert note_of_other_scales({}, wednesday, **logs) is None
    assert read_scales(str(tmp_path / "gone"), columns) == {}
