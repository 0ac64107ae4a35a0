"""Ids and constants of an earlier log: taken over as they are, or grown, with the counts of values without an id."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log
from stem_torchrec.runtime.errors import UserError

from prepared_logs import Rows, prepared, raw_rows, spec_of, split


@pytest.fixture(scope="module")
def rows() -> Rows:
    return raw_rows()


def test_another_day_takes_over_ids_and_constants_and_grows_them(tmp_path: Path, rows: Rows) -> None:
    fields: dict[str, Any] = {
        "features": {"user": None, "city": {"missing": "own"}},
        "dense": {"price": {"standardize": True}},
        "keep": ["time"],
    }
    first = prepared(tmp_path, rows, split={"time": {"by": "time", "train_until": 99, "valid_until": 199}}, **fields)
    spec = spec_of(tmp_path, rows, **fields)
    later = {"same": False, "grown": True}
    for name, grow in later.items():
        prepare_log(PrepareOptions(spec=str(spec), out=str(tmp_path / name), vocabularies=str(first), grow=grow))
    old, same, grown = (pq.read_table(tmp_path / log / "vocabulary" / "user.parquet") for log in ("log", *later))
    assert same.equals(old)
    assert grown.num_rows > old.num_rows
    assert grown.slice(0, old.num_rows)["value"].to_pylist() == old["value"].to_pylist()
    assert grown["id"].to_pylist() == list(range(1, grown.num_rows + 1))
    # The prices of a day are scaled as those of the first one.
    by_time = dict(zip(split(first, "train")["time"], split(first, "train")["price"], strict=True))
    train = split(tmp_path / "grown", "train")
    again = dict(zip(train["time"], train["price"], strict=True))
    assert {time: again[time] for time in by_time} == by_time
    fitted = [json.loads((tmp_path / log / "transforms.json").read_text())["fitted"] for log in ("log", *later)]
    assert fitted[0] == fitted[1] == fitted[2]


def test_the_vocabulary_of_another_feature_is_refused(tmp_path: Path, rows: Rows) -> None:
    first = prepared(tmp_path, rows)
    spec = spec_of(tmp_path, rows, features={"user": {"value": "city"}})
    with pytest.raises(UserError) as error:
        prepare_log(PrepareOptions(spec=str(spec), out=str(tmp_path / "next"), vocabularies=str(first)))
    sentence = f"features[user] has type text, but int in {first}: that is the vocabulary of another feature."
    assert str(error.value) == sentence
    page = Path(__file__).parents[1] / "docs" / "prepare.md"
    assert f"| {sentence.replace(str(first), 'LOG')} |" in page.read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": {"item": {"value": "user", "hash": {"buckets": 8}}}}, "features[item].hash is {'buckets': 8, "),
        ({"features": {"user": {"identity": 9_000}}}, "features[user].identity is 9000, but left out in "),
        ({"dense": {"price": {"log": True}}}, "dense[price].log is True, but False in "),
        (
            {"features": {"user": {"missing": "own"}}},
            "features[user] gives a missing value an id of its own, but no id of its own in ",
        ),
    ],
)
def test_ids_and_numbers_that_are_made_in_another_way_are_refused(
    change: dict[str, Any], words: str, tmp_path: Path, rows: Rows
) -> None:
    features: dict[str, Any] = {"user": None, "item": {"value": "user", "hash": {"buckets": 9}}}
    first = prepared(tmp_path, rows, features=features, dense={"price": None})
    change = {"dense": {"price": None}} | change | {"features": features | change.get("features", {})}
    spec = spec_of(tmp_path, rows, **change)
    with pytest.raises(UserError) as error:
        prepare_log(PrepareOptions(spec=str(spec), out=str(tmp_path / "next"), vocabularies=str(first), grow=True))
    assert str(error.value).startswith(words)


def test_a_log_that_lacks_a_vocabulary_is_refused(tmp_path: Path, rows: Rows) -> None:
    first = prepared(tmp_path, rows, features={"user": None})
    file, options = first / "vocabulary" / "user.parquet", {"spec": str(spec_of(tmp_path, rows)), "out": "next"}
    file.write_bytes(b"no Parquet")
    with pytest.raises(UserError, match=r"cannot be read .*; prepare that log again"):
        prepare_log(PrepareOptions(**options, vocabularies=str(first)))
    file.unlink()
    with pytest.raises(UserError, match=r"lacks a file .*user.parquet.*; prepare that log again"):
        prepare_log(PrepareOptions(**options, vocabularies=str(first)))


def test_a_vocabulary_that_does_not_tell_the_id_of_a_missing_value_has_none(tmp_path: Path, rows: Rows) -> None:
    first = prepared(tmp_path, rows)
    file = first / "transforms.json"
    content = json.loads(file.read_text())
    del content["vocabularies"]["user"]["missing_id"]
    file.write_text(json.dumps(content))
    spec = spec_of(tmp_path, rows)
    prepare_log(PrepareOptions(spec=str(spec), out=str(tmp_path / "next"), vocabularies=str(first)))
    old, new = (pq.read_table(log / "vocabulary" / "user.parquet") for log in (first, tmp_path / "next"))
    assert new.equals(old)


FEATURES: dict[str, Any] = {
    "city": {"vocabulary": {"min_count": 3}},
    "lately": {"value": "city", "vocabulary": {"min_count": 3, "forget_after": 2}},
    "two": {"value": "city", "vocabulary": {"most_frequent": 2}},
}


def cities_of(folder: Path, cities: str, features: dict[str, Any]) -> str:
    """The spec of a log whose train has a row for each city, a letter."""
    folder.mkdir(exist_ok=True)
    # Train has a row without a city, and valid one that counts for nothing.
    rows: Rows = {"city": [*cities, "", "v"], "click": [1] * len(cities) + [0, 1]}
    rows |= {"time": [0] * len(cities) + [1, 399], "user": [1] * len(rows["city"]), "price": [1.0] * len(rows["city"])}
    return str(spec_of(folder, rows, features=features))


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Logs of four days of cities, whose ids grow from day to day."""
    folder, logs = tmp_path_factory.mktemp("days"), list[Path]()
    for i, cities in enumerate(("aaabx", "abcc", "bccd", "ddex")):
        earlier: dict[str, Any] = {"vocabularies": str(logs[-1]), "grow": True} if logs else {}
        logs.append(folder / str(i) / "log")
        spec = cities_of(logs[-1].parent, cities, FEATURES)
        prepare_log(PrepareOptions(spec, out=str(logs[-1]), report=False, **earlier))
    return logs


def cells(log: Path, file: str) -> list[tuple[Any, ...]]:
    """The rows of a vocabulary: value, id and count; or of values without an id: value, count, logs that lack it."""
    return list(zip(*pq.read_table(log / file).to_pydict().values(), strict=True))


def test_a_value_gets_its_id_in_the_log_in_which_its_total_reaches_min_count(days: list[Path]) -> None:
    assert [cells(log, "vocabulary/city.parquet") for log in days] == [
        [("a", 1, 3)],
        [("a", 1, 4)],
        # Of those whose total is enough now, the most frequent one is the first.
        [("a", 1, 4), ("c", 2, 4), ("b", 3, 3)],
        [("a", 1, 4), ("c", 2, 4), ("b", 3, 3), ("d", 4, 3)],
    ]
    assert [cells(log, "waiting/city.parquet") for log in days] == [
        [("b", 1, 0), ("x", 1, 0)],
        [("b", 2, 0), ("c", 2, 0), ("x", 1, 1)],
        [("d", 1, 0), ("x", 1, 2)],
        [("e", 1, 0), ("x", 2, 0)],
    ]
    assert split(days[2], "train")["city"] == [3, 2, 2, 0, 0]


def test_a_value_is_forgotten_when_so_many_logs_in_a_row_lack_it(days: list[Path]) -> None:
    assert [cells(log, "waiting/lately.parquet") for log in days[1:]] == [
        [("b", 2, 0), ("c", 2, 0), ("x", 1, 1)],
        [("d", 1, 0)],
        [("e", 1, 0), ("x", 1, 0)],
    ]
    assert cells(days[3], "vocabulary/lately.parquet") == cells(days[3], "vocabulary/city.parquet")


def test_a_vocabulary_of_the_most_frequent_values_grows_until_it_has_as_many(days: list[Path]) -> None:
    vocabularies = [cells(log, "vocabulary/two.parquet") for log in days]
    assert vocabularies[:2] == [[("a", 1, 3)], [("a", 1, 4), ("b", 2, 2)]]
    assert vocabularies[3] == [("a", 1, 4), ("b", 2, 3)]
    assert cells(days[3], "waiting/two.parquet") == [("c", 4, 1), ("d", 3, 0), ("e", 1, 0), ("x", 2, 0)]


def test_counts_begin_at_this_log_where_the_earlier_one_has_none(
    days: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, features = shutil.copytree(days[0], tmp_path / "first"), {"city": FEATURES["city"]}
    spec = cities_of(tmp_path, "bbccc", features)
    options: dict[str, Any] = {"spec": spec, "vocabularies": str(first), "report": False}
    # The same ids keep the counts of those that have none.
    prepare_log(PrepareOptions(out=str(tmp_path / "same"), **options))
    assert cells(tmp_path / "same", "waiting/city.parquet") == [("b", 1, 0), ("x", 1, 0)]
    shutil.rmtree(first / "waiting")
    capsys.readouterr()
    prepare_log(PrepareOptions(out=str(tmp_path / "next"), grow=True, **options))
    note = f"note: {first} has no counts of values without an id, so min_count begins at this log.\n"
    assert note in capsys.readouterr().out
    assert cells(tmp_path / "next", "vocabulary/city.parquet") == [("a", 1, 3), ("c", 2, 3)]
    assert cells(tmp_path / "next", "waiting/city.parquet") == [("b", 2, 0)]
    file = tmp_path / "next" / "waiting" / "city.parquet"
    file.write_bytes(b"no Parquet")
    with pytest.raises(UserError, match=r"next cannot be read .*; prepare that log again"):
        prepare_log(PrepareOptions(spec, out=str(tmp_path / "last"), vocabularies=str(file.parents[1]), grow=True))


def test_a_vocabulary_becomes_a_hash_and_back_where_a_log_grows(days: list[Path], tmp_path: Path) -> None:
    hashed = {**FEATURES, "city": {"hash": {"buckets": 9}}}
    spec = cities_of(tmp_path, "bccde", hashed)
    with pytest.raises(UserError, match=r"features\[city\].hash is .*, but left out in .*; give the same"):
        prepare_log(PrepareOptions(spec, out=str(tmp_path / "hashed"), vocabularies=str(days[3]), report=False))
    options: dict[str, Any] = {"grow": True, "report": False}
    prepare_log(PrepareOptions(spec, out=str(tmp_path / "hashed"), vocabularies=str(days[3]), **options))
    assert not (tmp_path / "hashed" / "vocabulary" / "city.parquet").exists()
    assert cells(tmp_path / "hashed", "vocabulary/lately.parquet")[:2] == [("a", 1, 4), ("c", 2, 6)]
    spec = cities_of(tmp_path, "ccc", FEATURES)
    prepare_log(PrepareOptions(spec, out=str(tmp_path / "back"), vocabularies=str(tmp_path / "hashed"), **options))
    assert cells(tmp_path / "back", "vocabulary/city.parquet") == [("c", 1, 3)]
    assert cells(tmp_path / "back", "vocabulary/lately.parquet")[:2] == [("a", 1, 4), ("c", 2, 9)]
