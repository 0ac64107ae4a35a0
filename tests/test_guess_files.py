"""What is guessed of raw files: how CSV is written, types, nulls, formats, and which files are meant."""

import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.preparation.engines.duckdb_engine import DuckDBEngine
from stem_torchrec.preparation.engines.engine import ROW
from stem_torchrec.preparation.guessing.dialect import Dialect, guess_dialect
from stem_torchrec.preparation.guessing.guess_spec import Wishes, guess_spec
from stem_torchrec.preparation.guessing.inputs import files_of, is_spec, partitions_of
from stem_torchrec.preparation.guessing.source import guess_source
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log
from stem_torchrec.preparation.raw_files.csv_text import open_bytes
from stem_torchrec.preparation.specs.spec import Spec
from stem_torchrec.preparation.specs.spec_file import read_spec
from stem_torchrec.runtime.errors import UserError


def guessed(tmp_path: Path, *files: Path, **wishes: tuple[str, ...]) -> Spec:
    """The spec of files, by way of its text."""
    path = tmp_path / "guessed.yaml"
    path.write_text(guess_spec([str(file) for file in files], Wishes(**{"labels": ("y",)} | wishes)).text)
    return read_spec(path)


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("a,b\n1,2\n", Dialect(",", '"', False, ("a", "b"), 2)),
        ("a;b;c\n1;2,5;x\n2;3,5;y\n", Dialect(";", '"', False, ("a", "b", "c"), 3)),
        ("1\t2\t3\n4\t5\t6\n", Dialect("\t", '"', False, None, 3)),
        ("39, State-gov, <=50K\n50, Private, >50K\n\n", Dialect(",", '"', True, None, 3)),
        ('a,b\n1,"x, y"\n2,"z ""q"" w"\n', Dialect(",", '"', False, ("a", "b"), 2)),
        ('a\tb\n1\t"x\n2\ty"\n', Dialect("\t", "", False, ("a", "b"), 2)),
        ("1\x012\x013\n2\x013\x014\n", Dialect("\x01", '"', False, None, 3)),
        ("1|a,b,c|3\n1|a,d|4\n3|b,c|5\n", Dialect("|", '"', False, None, 3)),
        ("1 2 3\n2 3 4\n", Dialect(" ", '"', False, None, 3)),
        ("2022-05-03 10:00:00,5\n2022-05-04 10:00:00,6\n", Dialect(",", '"', False, None, 2)),
        ("city,color\nBonn,red\nKoeln,blue\n", Dialect(",", '"', False, ("city", "color"), 2)),
        # A value of the column, or a name that stands twice, is no header.
        ("Bonn,red\nKoeln,red\n", Dialect(",", '"', False, None, 2)),
        ("a,a\n1,2\n", Dialect(",", '"', False, None, 2)),
    ],
)
def test_the_dialect_of_csv_is_recognized(text: str, dialect: Dialect) -> None:
    assert guess_dialect(text, "x.csv") == dialect


def test_lines_that_no_delimiter_splits_alike_are_refused() -> None:
    with pytest.raises(UserError) as error:
        guess_dialect("one\ntwo\n", "x.csv")
    assert str(error.value) == (
        "x.csv has no delimiter that gives its lines the same number of cells (tried comma, tab, ; | ^ ~ and blank); "
        "write a spec with its delimiter."
    )


def test_types_nulls_and_lists_of_csv(tmp_path: Path) -> None:
    rows = [
        ",".join(
            (
                f"{i % 2}",
                f"{i / 7:.3f}" if i % 9 else "NA",
                f"{i % 5}.0" if i % 4 else "",
                f"0{i % 60:02}",
                f"{9_007_199_254_740_993 + i % 3}",
                "true" if i % 3 else "false",
                f"2022-05-{1 + i // 20:02} {i % 24:02}:00:00",
                f"2022-05-{1 + i % 9:02}",
                ("NA", r"\N", "DE")[i % 3],
                "|".join("abc"[: 1 + i % 3]),
                '"[10,20)"' if i % 2 else "0",
            )
        )
        for i in range(400)
    ]
    header = "y,price,level,zip,big,flag,time,born,country,tags,range"
    file = tmp_path / "log.csv.gz"
    file.write_bytes(gzip.compress("\n".join((header, *rows, "")).encode()))
    spec = guessed(tmp_path, file)
    source = spec.sources["log"]
    assert source.columns == dict(
        zip(
            header.split(","),
            ["int", "float", "int", "text", "text", "bool", "timestamp", "date", "text", "text", "text"],
            strict=True,
        )
    )
    # NA is no number; as price has it, it is a null of all columns.
    assert source.nulls == ("", "NA", r"\N")
    assert spec.id_features["tags"].value == "split(tags, '|')"
    assert spec.id_features["range"].value is None
    assert list(spec.dense) == ["price"]
    assert spec.split.time is not None
    # born is the time of something else.
    assert spec.split.time.by == spec.order == "time"
    assert {"hour", "weekday"} & set(spec.features) == {"hour", "weekday"}


def test_json_lines_name_the_columns_that_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    rows = [
        {"y": i % 2, "item_id": i % 40, "tags": [i % 3, i % 4], "about": {"a": 1}, "big": 2**60 + i % 9, "at": i / 2}
        for i in range(200)
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    spec = guessed(tmp_path, file)
    assert spec.sources["log"].columns == {
        **{"y": "int", "item_id": "int", "tags": "list<int>", "big": "text", "at": "float"}
    }
    assert set(spec.features) == {"at_bucket", "item_id", "tags", "big"}
    assert "#   about: struct" in (tmp_path / "guessed.yaml").read_text()


def test_whole_floats_of_parquet_as_pandas_writes_them_are_ints(tmp_path: Path) -> None:
    numbers = [float(i % 70) if i % 9 else None for i in range(300)]
    rows = pa.table({"y": [i % 2 for i in range(300)], "item_id": numbers, "tags": [[1, 2]] * 299 + [[3]]})
    for day in (3, 4):
        (tmp_path / f"log/date=2022-05-0{day}").mkdir(parents=True)
        pq.write_table(rows, tmp_path / f"log/date=2022-05-0{day}/part-0.parquet")
    spec = guessed(tmp_path, tmp_path / "log")
    source = spec.sources["log"]
    assert (source.type, source.columns, source.partitions) == ("parquet", {"item_id": "int"}, {"date": "text"})
    assert {"item_id", "tags"} <= set(spec.features)


def test_a_column_that_names_the_split_is_the_split(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    parts = ["train"] * 8 + ["dev"] * 2
    file.write_text("y,city,part\n" + "".join(f"{i // 10 % 2},{'abc'[i % 3]},{parts[i % 10]}\n" for i in range(200)))
    spec = guessed(tmp_path, file)
    assert spec.split.column is not None
    assert (spec.split.column.train, spec.split.column.valid) == (("train",), ("dev",))
    assert set(spec.features) == {"city"}


def test_specs_and_raw_files_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("a,b\n1,2\n")
    Path("spec").write_text("# A spec\nformat: 1\n")
    assert [is_spec([each], ["adult"]) for each in ("x.yaml", "adult", "spec", "adlut")] == [True] * 4
    assert [is_spec([each], ["adult"]) for each in ("a.csv", "*.csv", "s3://a/b.parquet", "no/such.csv")] == [False] * 4
    Path("adult").mkdir()
    with pytest.raises(UserError) as error:
        is_spec(["adult"], ["adult"])
    assert str(error.value) == (
        "adult is the name of an installed spec and of a folder; write ./adult for the latter, or give the spec from "
        "another folder."
    )
    with pytest.raises(UserError) as error:
        is_spec(["a.csv", "x.yaml"], [])
    assert str(error.value) == ("x.yaml is a spec, beside which a.csv cannot stand; give one spec, or raw files only.")


def test_files_of_several_types_or_of_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "b.json").write_text('{"a": 1}\n')
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError) as error:
        files_of([str(tmp_path)])
    assert str(error.value).startswith(f"{tmp_path} has files of several types, ")
    with pytest.raises(UserError, match=r"none has no file that ends in \.csv, .*; give such files\.$"):
        files_of([str(tmp_path / "none")])
    with pytest.raises(UserError, match="of which no file exists; correct the path"):
        files_of([str(tmp_path / "c.csv")])


def test_a_file_without_an_ending_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"a": 1}\n')
    assert files_of([str(tmp_path / "rows")])[0].type == "json"
    (tmp_path / "bytes").write_bytes(b"\0\1")
    with pytest.raises(UserError, match="is neither CSV nor JSON lines nor Parquet; give files of these"):
        files_of([str(tmp_path / "bytes")])


@pytest.mark.parametrize("lines", [10, 200_000])
def test_text_that_is_not_utf8_is_refused_with_what_to_do(tmp_path: Path, lines: int) -> None:
    file = tmp_path / "x.csv"
    good = b"y,city\n" + b"0,Bonn\n1,Kiel\n" * (lines // 2)
    file.write_bytes(good + b"1,K\xf6ln\n")
    options = PrepareOptions(spec=str(file), label=("y",), out=str(tmp_path / "log"), memory=0.5)
    with pytest.raises(UserError) as error:
        prepare_log(options)
    fix = "A guess reads UTF-8: convert the file, or write a spec with its encoding, such as latin-1."
    if lines == 10:
        assert str(error.value) == f"{file} is not UTF-8 at byte {len(good) + 3}. {fix}"
    else:
        # The first MiB, which tells how the file is written, is UTF-8.
        place = (
            f"{file}, line {lines + 2}: the byte 0xf6 at position {len(good) + 3} is not utf-8; name the encoding of "
        )
        assert str(error.value) == f"{place}the source, such as latin-1 or gb18030. {fix}"


def test_partitions_are_those_of_all_files() -> None:
    assert partitions_of(["a/d=1/h=2/x", "a/d=2/y"]) == {"d": ["1", "2"]}


def test_the_sample_has_the_rows_of_several_files_in_their_order(tmp_path: Path) -> None:
    for i in range(3):
        pq.write_table(pa.table({"n": [10 * i, 10 * i + 1]}), tmp_path / f"{i}.parquet")
    (tmp_path / "kept").mkdir()
    engine = DuckDBEngine(tmp_path / "kept", memory="0.5GiB")
    _, sample = guess_source(engine, [str(tmp_path / "*.parquet")])
    rows = engine.rows(sample.order_by(ROW).select("n"))
    engine.close()
    assert rows == [(0,), (1,), (10,), (11,), (20,), (21,)]


def test_a_damaged_archive_is_refused_by_name(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(b"a,b\n" + bytes(range(48, 58)) * 200))
    content[10] = 0xFF  # A kind of block that does not exist.
    path = tmp_path / "x.csv.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))} cannot be read "), open_bytes(str(path)) as file:
        file.read()
