"""Raw files that other programs write and that are easy to misread: none loses, repeats or changes a row."""

import datetime
import importlib.util
import json
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pandas as pd
import pyarrow as pa
import pytest

from stem_torchrec.data.schema import load_schema
from stem_torchrec.preparation.engines.duckdb_errors import sentences_of_duckdb
from stem_torchrec.preparation.prepare_log import _state
from stem_torchrec.preparation.raw_files.listing import find_files
from stem_torchrec.preparation.specs.spec import Source
from stem_torchrec.runtime.errors import UnwritableError, UserError

from preparations import column, prepare, refusal, spec_with
from test_sources import Reader, parquet, reader

__all__ = ["reader"]
AB = "a,b\n"
NUMBERS = pa.table({"a": [1, 2]})


def test_names_of_files_are_no_patterns(reader: Reader) -> None:
    files = {"x/[1]*?.csv": f"{AB}1,p\n", "x/1.csv": f"{AB}2,q\n", "x/y'z.csv": f"{AB}3,r\n"}
    assert sorted(reader.rows(files, "x")) == [("1", "p"), ("2", "q"), ("3", "r")]


def test_the_folder_of_a_log_may_have_any_name(tmp_path: Path) -> None:
    log = prepare(tmp_path, out="made[1]*?", report=False).with_name("made[1]*?")
    assert column(log, "user") == [1, 2, 3, 4] * 3


def test_two_stars_leave_out_what_spark_has_not_finished(reader: Reader) -> None:
    files = {
        name: f"{AB}{i},x\n" for i, name in enumerate(["_d/_temporary/0/p.csv", "_d/day=1/p.csv", "_d/_old/p.csv"])
    }
    assert reader.rows(files, "_d/**/*.csv") == [("1", "x")]


def test_a_part_without_a_value_has_the_type_of_the_others(reader: Reader) -> None:
    for i, values in enumerate([[None, None], ["x", "y"], [None, None]]):
        path = reader.folder / "raw" / f"{i}.parquet"
        path.parent.mkdir(exist_ok=True)
        pd.DataFrame({"a": [1, 2], "b": values}).to_parquet(path)
    rows = [(a, b) for values in ((None, None), ("x", "y"), (None, None)) for a, b in zip((1, 2), values, strict=True)]
    assert reader.rows({}, "*.parquet", type="parquet") == rows


def test_a_partition_of_floats_is_not_rounded(reader: Reader) -> None:
    files = {f"x/share={share}/p.parquet": parquet(pa.table({"a": [1]})) for share in ("0.5", "1.5")}
    rows = reader.rows(files, "x", type="parquet", partitions={"share": "float"})
    assert rows == [(1, 0.5), (1, 1.5)]


def test_columns_of_one_letter_that_a_file_has_twice_are_refused(reader: Reader) -> None:
    with pytest.raises(UserError, match="names the column 'a' twice"):
        reader.rows({"x.parquet": parquet(pa.table([[1], [2]], names=["a", "a"]))}, type="parquet")


def test_a_damaged_page_of_parquet_names_its_file(reader: Reader) -> None:
    content = bytearray(parquet(pa.table({"a": list(range(10_000))})))
    content[10:70] = b"\xff" * 60
    with pytest.raises(UserError, match=r"^\S*y.parquet (is damaged|cannot be read) \("):
        reader.rows({"x.parquet": parquet(NUMBERS), "y.parquet": bytes(content)}, "*.parquet", type="parquet")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"a": 1651572000}', "column 'a' has 1651572000, which is not a time such as 2022-05-03 10:00:00"),
        ('{"l": 1}', "column 'l' has 1, which is not a list"),
        ("5", "the line is 5, not an object in braces"),
        ('{"t": "\\ud83d"}', "the line has half of a surrogate pair, which is no character"),
    ],
)
def test_a_wrong_line_of_json_has_its_number(line: str, sentence: str, reader: Reader) -> None:
    text = '{"a": "2022-05-03"}\n' * 3 + line + "\n"
    with pytest.raises(UserError) as error:
        reader.rows({"x.jsonl": text}, type="json", columns={"a": "timestamp", "l": "list<int>", "t": "text"})
    assert str(error.value).endswith(f"x.jsonl, line 4: {sentence}; correct it or its type.") or str(
        error.value
    ).endswith(f"x.jsonl, line 4: {sentence}; correct it.")


def test_lines_of_json_that_are_no_objects_are_not_taken_for_a_column(reader: Reader) -> None:
    with pytest.raises(UserError, match="line 2: the line is 5, not an object"):
        reader.rows({"x.jsonl": '{"a": "x"}\n5\n'}, type="json", columns={"a": "text"})


def test_a_scalar_with_a_weight_may_have_an_id_for_a_missing_value(tmp_path: Path) -> None:
    feature = {"missing": "own", "weights": "user / 2", "vocabulary": {"min_count": 1}}
    log = prepare(tmp_path, spec_with(features={"f": {"value": "nullif(user, 1)", **feature}}, where="user < 3"))
    assert column(log, "f") == [1, 2] * 3
    assert column(log, "f_weights") == [0.5, 1.0] * 3


def test_an_empty_list_with_weights_has_the_id_of_a_missing_value_and_weight_1(tmp_path: Path) -> None:
    lists = [([], []), (None, None), ([5, 6], [0.5, 2.0])]
    lines = [{"day": i // 3 + 1, "c": i % 2, "l": lists[i % 3][0], "w": lists[i % 3][1]} for i in range(9)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    columns = {"day": "int", "c": "int", "l": "list<int>", "w": "list<float>"}
    spec = spec_with(
        sources={"log": {"files": "log.jsonl", "type": "json", "columns": columns}},
        labels={"c": "c"},
        features={"l": {"weights": "w", "missing": "own"}, "k": {"value": "l", "weights": "w", "missing": "none"}},
    )
    log = prepare(tmp_path, spec, {"log.jsonl": text}, report=False)
    assert column(log, "l") == [[1], [1], [2, 3]] * 3
    assert column(log, "l_weights") == [[1.0], [1.0], [0.5, 2.0]] * 3
    assert column(log, "k") == [[], None, [1, 2]] * 3


def test_a_missing_value_beside_ids_as_they_are_has_an_id_behind_them(tmp_path: Path) -> None:
    spec = spec_with(features={"f": {"value": "nullif(user, 1)", "identity": 5, "missing": "own"}})
    log = prepare(tmp_path, spec, report=False)
    assert column(log, "f") == [5, 2, 3, 4] * 3
    assert load_schema(str(log)).sparse_features[0].num_embeddings == 6


def test_rows_without_a_time_belong_to_no_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_with(split={"time": {"by": "nullif(user, 1) + day * 0", "train_until": 3, "valid_until": 4}})
    assert column(prepare(tmp_path, spec, report=False), "user") == [1, 2] * 3 + [0] * 3
    assert "source 12, split 9" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("IO Error: Unexpected end of GZIP stream: x.csv.gz", UserError),
        ("IO Error: Could not write file x.csv.gz: No space left on device", UnwritableError),
        ("IO Error: Cannot open file /elsewhere", UnwritableError),
    ],
)
def test_a_file_that_cannot_be_read_is_no_full_disk(message: str, kind: type[Exception]) -> None:
    with pytest.raises(UserError) as error, sentences_of_duckdb(sources={"x.csv.gz": Source("x.csv.gz")}):
        raise duckdb.IOException(message)
    assert type(error.value) is kind


def test_too_little_memory_is_a_sentence_with_the_option(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i % 3 + 1},{i % 2},{'x' * 1000}{i}\n" for i in range(60_000))
    feature: dict[str, Any] = {"t": {"vocabulary": {"min_count": 1}}}
    sentence = refusal(
        tmp_path, spec_with(features=feature), {"log.csv": f"user,day,click,t\n{rows}"}, memory=0.02, report=False
    )
    assert sentence.startswith("the memory does not suffice (")
    assert sentence.endswith("); give more with --memory.")


@pytest.mark.skipif(importlib.util.find_spec("deltalake") is None, reason="deltalake is not installed")
def test_a_delta_table_with_a_column_added_later_has_nulls_before_and_a_newer_version_is_refused(
    reader: Reader,
) -> None:
    import deltalake

    folder = reader.folder / "raw" / "table"
    folder.parent.mkdir()
    deltalake.write_deltalake(str(folder), pa.table({"a": [1]}))
    later = pa.table({"a": [2], "b": [datetime.date(2022, 5, 3)]})
    deltalake.write_deltalake(str(folder), later, mode="append", schema_mode="merge")
    assert sorted(reader.rows({}, "table", type="delta")) == [(1, None), (2, datetime.date(2022, 5, 3))]
    first = min((folder / "_delta_log").glob("*.json"))
    first.write_text(first.read_text().replace('"minReaderVersion":1', '"minReaderVersion":9'))
    with pytest.raises(UserError, match=r"cannot be read as a Delta table \(.*version 9"):
        find_files("log", Source(str(folder), type="delta"))


@pytest.mark.skipif(importlib.util.find_spec("deltalake") is None, reason="deltalake is not installed")
def test_the_folders_of_a_delta_table_are_columns(reader: Reader) -> None:
    import deltalake

    folder = reader.folder / "raw" / "table"
    folder.parent.mkdir()
    table = pa.table({"a": [1, 2, 3], "day": ["2022-05-03", "2022-05-04", "2022-05-03"]})
    deltalake.write_deltalake(str(folder), table, partition_by=["day"])
    days = [datetime.date(2022, 5, day) for day in (3, 4, 3)]
    rows = reader.rows({}, "table", type="delta", partitions={"day": "date"})
    assert sorted(rows) == list(zip((1, 2, 3), days, strict=True))


@pytest.mark.parametrize("files", ["raw", "raw/**/*.parquet"])
def test_a_log_in_the_folder_of_its_source_is_refused(files: str, tmp_path: Path) -> None:
    raw = {"raw/log.parquet": parquet(pa.table({"user": [1], "day": [1], "click": [1]}))}
    sentence = refusal(tmp_path, spec_with(sources={"log": {"files": files, "type": "parquet"}}), raw, out="raw/made")
    assert sentence == "--out raw/made is in raw, all of whose files sources[log] has; give another folder."


def test_an_interrupted_log_begins_anew_when_a_file_in_a_store_has_changed(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/odd/log.csv", b"user")
    first = _state("memory://odd/log.csv")
    assert _state("memory://odd/log.csv") == first
    store.pipe("/odd/log.csv", b"users")
    assert _state("memory://odd/log.csv") != first
