"""Raw files of every kind as rows of DuckDB."""

import bz2
import gzip
import http.server
import importlib.util
import io
import lzma
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.preparation.engines.duckdb_engine import DuckDBEngine
from stem_torchrec.preparation.engines.engine import RefusedCellError
from stem_torchrec.preparation.raw_files.listing import find_files
from stem_torchrec.preparation.rows.sources import read_source
from stem_torchrec.preparation.specs.checks import check_source
from stem_torchrec.preparation.specs.spec import Source
from stem_torchrec.runtime.errors import UserError

from preparations import CSV, column, prepare, spec_with, write_files
from stores import BUCKET, s3_server

ABC = {"a": "int", "b": "text", "c": "float"}
ONE = [(1, "x", 2.5)]


def zstd(content: bytes) -> bytes:
    output = pa.BufferOutputStream()
    with pa.CompressedOutputStream(output, "zstd") as stream:
        stream.write(content)
    return output.getvalue().to_pybytes()


def parquet(table: pa.Table, **options: Any) -> bytes:
    output = io.BytesIO()
    pq.write_table(table, output, **options)
    return output.getvalue()


class Reader:
    """Reads sources with an engine in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine: DuckDBEngine | None = None

    def rows(
        self, files: Mapping[str, str | bytes], pattern: str | None = None, *, exact: bool = False, **fields: Any
    ) -> list[tuple[Any, ...]]:
        """The rows of the files that match a pattern, of the first file if none is given."""
        write_files(self.folder / "raw", files)
        source = Source(str(self.folder / "raw" / (pattern or next(iter(files)))), **fields)
        check_source("sources[log]", source)
        work = self.folder / "work"
        work.mkdir()
        self.engine = DuckDBEngine(work, memory="0.25GB", threads=1)
        return self.engine.rows(read_source(self.engine, "log", source, exact=exact))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    made = Reader(tmp_path)
    yield made
    if made.engine is not None:
        made.engine.close()


@pytest.mark.parametrize(
    ("text", "fields", "rows"),
    [
        pytest.param("a,b,c\n1,x,2.5\n2,,\n", {}, [*ONE, (2, None, None)], id="a header"),
        pytest.param("c,b,a\n2.5,x,1\n", {}, [(2.5, "x", 1)], id="columns in another order than the types"),
        pytest.param("1,x,2.5\n", {"header": False}, ONE, id="no header"),
        pytest.param("1\tx\t2.5\n", {"header": False, "delimiter": "\t", "quote": ""}, ONE, id="TSV"),
        pytest.param("a;b;c\n1;x;2.5\n", {"delimiter": ";"}, ONE, id="semicolon"),
        pytest.param("a||b||c\n1||x|y||2.5\n", {"delimiter": "||"}, [(1, "x|y", 2.5)], id="delimiter of two"),
        pytest.param("a\x01b\x01c\n1\x01x\x012.5\n", {"delimiter": "\x01"}, ONE, id="delimiter 0x01"),
        pytest.param('a,b,c\n1,"x, ""y""\nz",2.5\n', {}, [(1, 'x, "y"\nz', 2.5)], id="quotes and a line break"),
        pytest.param('a,b,c\n1,x "y" z,2.5\n', {}, [(1, 'x "y" z', 2.5)], id="quotes inside a cell"),
        pytest.param('a,b,c\n1,"x,2.5\n', {"quote": ""}, [(1, '"x', 2.5)], id="no quotes"),
        pytest.param("a,b,c\n1,'x,y',2.5\n", {"quote": "'"}, [(1, "x,y", 2.5)], id="another quote"),
        pytest.param("a,b,c\r\n1,x,2.5\r\n\r\n", {}, ONE, id="CRLF"),
        pytest.param("a,b,c\n1,x,2.5\n\n", {}, ONE, id="a blank last line"),
        pytest.param("\ufeffa,b,c\n1,x,2.5\n", {}, ONE, id="BOM"),
        pytest.param("\ufeff1,x,2.5\n", {"header": False}, ONE, id="BOM without a header"),
        pytest.param(
            " a , b , c \n 1 , x , 2.5 \n ?,?, ?\n",
            {"trim": True, "nulls": ("?", "")},
            [*ONE, (None, None, None)],
            id="trim",
        ),
        pytest.param("a,b,c\n\\N,\\N,\\N\n", {"nulls": ("\\N",)}, [(None, None, None)], id="null marker"),
        pytest.param("a,b,c\n1,,2.5\n", {"nulls": ()}, [(1, "", 2.5)], id="no null marker"),
        pytest.param("a,b,c\n4.0,x,2.5\n4.,x,\n", {}, [(4, "x", 2.5), (4, "x", None)], id="whole numbers as 4.0"),
        pytest.param(",b,c\n1,x,2.5\n", {"columns": {"c": "float"}}, [("1", "x", 2.5)], id="a column without a name"),
    ],
)
def test_csv_of_every_kind(reader: Reader, text: str, fields: dict[str, Any], rows: list[Any]) -> None:
    assert reader.rows({"log.csv": text}, **{"columns": ABC, **fields}) == rows


@pytest.mark.parametrize("encoding", ["latin-1", "gb18030", "utf-16", "utf-16-le", "cp1252", "utf-8-sig"])
@pytest.mark.parametrize("header", [True, False])
def test_text_of_any_encoding(reader: Reader, encoding: str, header: bool) -> None:
    word = "\u4e2d\u6587" if encoding[:3] in ("gb1", "utf") else "\u00e9t\u00e9"
    text = f"1,{word},2.5\n" * 3
    content = (("a,b,c\n" if header else "") + text).encode(encoding)
    rows = reader.rows({"log.csv": content}, columns=ABC, encoding=encoding, header=header)
    assert rows == [(1, word, 2.5)] * 3


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16-le"])
def test_a_wrong_byte_is_named_wherever_it_stands(reader: Reader, encoding: str) -> None:
    # More than one piece of 1 MiB.
    good = ("a,b,c\n" + "1,\u4e2d,2.5\n" * 200_000).encode(encoding)
    wrong = {"utf-8": b"\xe9", "gb18030": b"\xff", "utf-16-le": b"\x00\xd8\x41\x00"}[encoding]
    with pytest.raises(UserError) as error:
        reader.rows({"log.csv": good + wrong + "\n".encode(encoding)}, columns=ABC, encoding=encoding)
    assert f"log.csv, line 200002: the byte 0x{wrong[0]:02x} at position {len(good)} is not {encoding};" in str(
        error.value
    )


def test_a_whole_number_above_2_to_the_53_is_refused_by_the_fast_way(reader: Reader) -> None:
    with pytest.raises(RefusedCellError):
        reader.rows({"log.csv": f"a,b,c\n{2**53 + 1},x,2.5\n"}, columns=ABC)


NUMBERS = [2**53 + 1, 2**63 - 1, -(2**63), 0, 1000, 7, None]
TEXTS = [f"{2**53 + 1}", f"{2**63 - 1}", f"{-(2**63)}", "0", "1e3", "7.0", "nan"]


def test_whole_numbers_above_2_to_the_53_are_read_exactly(reader: Reader) -> None:
    assert reader.rows({"log.csv": "a\n" + "\n".join(TEXTS)}, columns={"a": "int"}, exact=True) == [
        (each,) for each in NUMBERS
    ]


def test_whole_numbers_of_digits_alone_are_read_exactly_at_once(reader: Reader) -> None:
    text = f"a\n+5\n007\n-0\n{2**53 + 1}\n{-(2**63)}\n"
    numbers = [5, 7, 0, 2**53 + 1, -(2**63)]
    assert reader.rows({"log.csv": text}, columns={"a": "int"}) == [(each,) for each in numbers]


@pytest.mark.parametrize("cell", ["1.5", "1e-1", "15E-1", "0x1f", "0X1F", "0b1", "0B1", "0o7", "inf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_an_int_of_duckdb_would_round_or_takes_besides_is_refused(reader: Reader, cell: str, end: str) -> None:
    with pytest.raises(UserError):
        reader.rows({"log.csv": end.join(["a", "1", cell, "2", ""])}, columns={"a": "int"})


def test_a_log_with_numbers_above_2_to_the_53_is_read_again(tmp_path: Path) -> None:
    big = {"1": 2**53 + 1, "2": 2**53, "3": 2**63 - 1, "4": -(2**63)}
    text = CSV
    for small, number in big.items():
        text = text.replace(f"\n{small},", f"\n{number},")
    spec = spec_with(features={"id": {"value": "user"}}, keep=["user"])
    assert set(column(prepare(tmp_path, spec, {"log.csv": text}), "user")) == set(big.values())


def test_json_lines_with_numbers_above_2_to_the_53_are_read_exactly(reader: Reader) -> None:
    text = f'{{"a": {2**53 + 1}, "b": [{2**63 - 1}, 1]}}\n{{"a": 4.0}}\n'
    fields = {"type": "json", "columns": {"a": "int", "b": "list<int>"}}
    assert reader.rows({"log.jsonl": text}, exact=True, **fields) == [(2**53 + 1, [2**63 - 1, 1]), (4, None)]


@pytest.mark.parametrize("text", ['{"a": 4.5}\n', '{"b": [1, 1.5]}\n', f'{{"b": [{2**53 + 1}]}}\n'])
def test_numbers_of_json_lines_are_not_rounded(reader: Reader, text: str) -> None:
    with pytest.raises(RefusedCellError):
        reader.rows({"log.jsonl": text}, type="json", columns={"a": "int", "b": "list<int>"})


def test_times_written_as_text(reader: Reader) -> None:
    cells = [
        *("2022-05-03 10:00:00", "2022-05-03T10:00:00Z", "2022-05-03T18:00:00+08:00", "2022-05-03 10:00:00.25"),
        "2022-05-03",
    ]
    rows = reader.rows({"log.csv": "a\n" + "\n".join(cells)}, columns={"a": "timestamp"})
    ten = datetime(2022, 5, 3, 10)
    times = [value.replace(tzinfo=None) for (value,) in rows]
    assert times == [ten, ten, ten, ten.replace(microsecond=250_000), datetime(2022, 5, 3)]


@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)]
)
def test_packed_files(reader: Reader, ending: str, pack: Callable[[bytes], bytes]) -> None:
    files = {f"log.csv.{ending}": pack(b"a,b,c\n1,x,2.5\n")}
    assert reader.rows(files, columns=ABC) == ONE


@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)]
)
def test_packed_json_lines(reader: Reader, ending: str, pack: Callable[[bytes], bytes]) -> None:
    lines = {f"log.jsonl.{ending}": pack(b'{"a": 1, "b": "x", "c": 2.5}\n')}
    assert reader.rows(lines, type="json", columns=ABC) == ONE


def test_a_packed_file_of_another_encoding(reader: Reader) -> None:
    files = {"log.csv.xz": lzma.compress("a,b,c\n1,\u00e9,2.5\n".encode("latin-1"))}
    assert reader.rows(files, columns=ABC, encoding="latin-1") == [(1, "\u00e9", 2.5)]


def test_parts_come_in_the_order_of_their_paths_and_a_name_is_a_column(reader: Reader) -> None:
    files = {f"log_{name}.csv": f"a\n{i}\n" for i, name in enumerate("cab")} | {"log_d.csv": "", "other.csv": "b\n"}
    rows = reader.rows(files, "log_{part}.csv", columns={"a": "int"}, partitions={"part": "text"})
    assert rows == [(1, "a"), (2, "b"), (0, "c")]


def test_hive_folders_and_the_markers_of_spark(reader: Reader) -> None:
    files = {
        "log/date=2022-05-04/part-0.csv": "a\n2\n",
        "log/date=2022-05-03/part-0.csv": "a\n1\n",
        "log/date=__HIVE_DEFAULT_PARTITION__/part-0.csv.gz": gzip.compress(b"a\n3\n"),
        "log/date=2022-05-04/part-1.csv": "",
        "log/_SUCCESS": "",
        "log/date=2022-05-04/.part-0.csv.crc": "crc",
        "log/_delta_log/00000000000000000000.json": "{}",
        "log/_temporary/0/part-9.csv": "a\n9\n",
    }
    rows = reader.rows(files, "log", columns={"a": "int"}, partitions={"date": "date"})
    assert sorted(rows, key=str) == sorted([(1, date(2022, 5, 3)), (2, date(2022, 5, 4)), (3, None)], key=str)


@pytest.mark.parametrize("content", [b"a,b,c\n1,\xe9,2.5\n"])
def test_a_recoded_file_keeps_its_partition(reader: Reader, content: bytes) -> None:
    files = {"log/day=7/part-0.csv": content}
    rows = reader.rows(files, "log", columns=ABC, encoding="latin-1", partitions={"day": "int"})
    assert rows == [(1, "\u00e9", 2.5, 7)]


def test_json_lines_of_every_type(reader: Reader) -> None:
    values = ["1", "0.5", '"x"', "true", '"2022-05-03T18:00:00+08:00"', '"2022-05-03"', "[1, 2]", "[0.5]", '["x", ""]']
    kinds = ["int", "float", "text", "bool", "timestamp", "date", "list<int>", "list<float>", "list<text>"]
    line = ", ".join(f'"{kind}": {value}' for kind, value in zip(kinds, values, strict=True))
    rows = reader.rows({"log.jsonl": f"{{{line}}}\n{{}}\n"}, type="json", columns={kind: kind for kind in kinds})
    assert [rows[0][0:4], rows[0][5:], set(rows[1])] == [(1, 0.5, "x", True), (DAY, [1, 2], [0.5], ["x", ""]), {None}]
    assert rows[0][4].replace(tzinfo=None) == TIME


DAY, TIME = date(2022, 5, 3), datetime(2022, 5, 3, 10)
ARRAYS = [
    *((pa.array([1, None], kind()), 1) for kind in (pa.int8, pa.int16, pa.int32, pa.int64)),
    *((pa.array([1, None], kind()), 1) for kind in (pa.uint8, pa.uint16, pa.uint32, pa.uint64)),
    *((pa.array([1, None], kind), 1.0) for kind in (pa.float16(), pa.float32(), pa.float64())),
    (pa.array([True, None]), True),
    (pa.array([Decimal("1.5"), None], pa.decimal128(10, 2)), 1.5),
    (pa.array([Decimal(2**62), None], pa.decimal128(20, 0)), 2**62),
    (pa.array(["x", None]), "x"),
    (pa.array(["x", None], pa.large_string()), "x"),
    (pa.array(["x", None]).dictionary_encode(), "x"),
    (pa.nulls(2), None),
    (pa.nulls(2, pa.list_(pa.null())), None),
    *((pa.array([TIME, None], pa.timestamp(unit)), TIME) for unit in ("s", "ms", "us", "ns")),
    (pa.array([DAY, None]), DAY),
    (pa.array([DAY, None], pa.date64()), DAY),
    (pa.array([[1, 2], None], pa.list_(pa.int8())), [1, 2]),
    (pa.array([[1, 2], None], pa.large_list(pa.uint64())), [1, 2]),
    (pa.array([[1, 2], None], pa.list_(pa.int32(), 2)), [1, 2]),
    (pa.array([[1.5], None], pa.list_(pa.float32())), [1.5]),
    (pa.array([["x"], None]), ["x"]),
]


@pytest.mark.parametrize(("array", "value"), ARRAYS, ids=[str(array.type) for array, _ in ARRAYS])
def test_parquet_of_every_type(reader: Reader, array: pa.Array, value: Any) -> None:
    table = pa.table({"a": array, "struct": [{"x": 1}] * 2, "bytes": [b""] * 2})
    assert reader.rows({"log.parquet": parquet(table)}, type="parquet") == [(value,), (None,)]


OTHER_KINDS = [pa.time64("us"), pa.time64("ns"), pa.list_(pa.time64("ns"))]
"""Types of Parquet that are not read."""


@pytest.mark.parametrize("kind", OTHER_KINDS, ids=str)
def test_a_column_of_parquet_that_cannot_be_read_is_left_out(reader: Reader, kind: pa.DataType) -> None:
    table = pa.table({"a": [1, 2], "b": pa.nulls(2, kind)})
    assert reader.rows({"log.parquet": parquet(table)}, type="parquet") == [(1,), (2,)]


@pytest.mark.parametrize("kind", OTHER_KINDS, ids=str)
def test_a_column_of_parquet_that_cannot_be_read_and_is_named_is_refused(reader: Reader, kind: pa.DataType) -> None:
    table = pa.table({"a": [1, 2], "b": pa.nulls(2, kind)})
    with pytest.raises(
        UserError, match=r"^sources\[log\].columns\[b\] is int, but the files have .+, which is not read"
    ):
        reader.rows({"log.parquet": parquet(table)}, type="parquet", columns={"b": "int"})


OF_ANOTHER_PROGRAM = [
    (1, 1, 0.5, "x", "a", "s", True, TIME, DAY, [1, 2], [1.0, 2.0]),
    (None, 2, None, None, "b", None, None, None, None, [], None),
    (
        2**53 + 1,
        None,
        None,
        "\u00e9",
        None,
        "l",
        False,
        datetime(1969, 12, 31, 23),
        date(1969, 12, 31),
        None,
        [3.0, 4.0],
    ),
]
"""Rows of id, count, price, name, kind, size, flag, time, day, tags and pair."""


def test_what_polars_writes_is_read(reader: Reader) -> None:
    content = (Path(__file__).parent / "data/written_by/polars.parquet").read_bytes()
    rows = reader.rows({"log.parquet": content}, type="parquet")
    # Expressions take NaN for a missing number.
    assert [tuple(None if cell != cell else cell for cell in row) for row in rows] == OF_ANOTHER_PROGRAM


def test_what_duckdb_writes_is_read(reader: Reader) -> None:
    file = reader.folder / "raw" / "log.parquet"
    file.parent.mkdir()
    kinds = [
        "BIGINT",
        "UTINYINT",
        "DOUBLE",
        "VARCHAR",
        "VARCHAR",
        "ENUM('s','l')",
        "BOOLEAN",
        "TIMESTAMP",
        "DATE",
        "BIGINT[]",
        "FLOAT[2]",
    ]
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE t ({', '.join(f'c{i} {kind}' for i, kind in enumerate(kinds))})")
        connection.executemany(f"INSERT INTO t VALUES ({', '.join('?' * len(kinds))})", OF_ANOTHER_PROGRAM)
        connection.execute(f"COPY t TO '{file}' (FORMAT parquet)")
    assert reader.rows({}, "log.parquet", type="parquet") == OF_ANOTHER_PROGRAM


def test_what_pandas_writes_is_read(reader: Reader) -> None:
    file = reader.folder / "raw" / "log.parquet"
    file.parent.mkdir()
    names = ["id", "count", "price", "name", "kind", "size", "flag", "time", "day", "tags", "pair"]
    columns = dict(zip(names, map(list, zip(*OF_ANOTHER_PROGRAM, strict=True)), strict=True))
    columns |= {"id": pd.array(columns["id"], "Int64"), "kind": pd.Categorical(columns["kind"])}
    frame = pd.DataFrame(columns)
    # `count` is 1.0, 2.0 and NaN; rows that were filtered before have an index of their own.
    frame.set_axis([5, 3, 4]).to_parquet(file)
    rows = reader.rows({}, "log.parquet", type="parquet", columns={"count": "int"})
    assert [row[: len(names)] for row in rows] == OF_ANOTHER_PROGRAM


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_parquet_with_times_of_a_zone(reader: Reader, unit: str) -> None:
    table = pa.table({"a": pa.array([TIME], pa.timestamp(unit, "Asia/Shanghai"))})
    [(value,)] = reader.rows({"log.parquet": parquet(table)}, type="parquet")
    assert value.replace(tzinfo=None) == TIME


def test_parquet_of_old_versions_of_spark(reader: Reader) -> None:
    content = parquet(pa.table({"a": [TIME]}), use_deprecated_int96_timestamps=True)
    assert reader.rows({"log.parquet": content}, type="parquet") == [(TIME,)]


def test_whole_doubles_of_pandas_are_ints_where_the_spec_says_so(reader: Reader) -> None:
    content = parquet(pa.table({"a": [float("nan"), 4.0]}))
    assert reader.rows({"log.parquet": content}, type="parquet", columns={"a": "int"}) == [(None,), (4,)]


@pytest.mark.parametrize("values", [[4.5], [float(2**53)], pa.array([2**64 - 1], pa.uint64()), ["x"]])
def test_values_of_parquet_that_are_no_ints_are_refused(reader: Reader, values: Any) -> None:
    with pytest.raises(RefusedCellError):
        reader.rows({"log.parquet": parquet(pa.table({"a": values}))}, type="parquet", columns={"a": "int"})


def test_parts_of_parquet_may_have_other_numbers_and_another_order(reader: Reader) -> None:
    files = {
        "1.parquet": parquet(pa.table({"a": [1], "b": ["x"]})),
        "2.parquet": parquet(pa.table({"b": ["y"], "a": pa.array([2], pa.int8())})),
        "3.parquet": parquet(pa.table({"a": [3.0, float("nan")], "b": pa.array(["z", "z"]).dictionary_encode()})),
        "4.parquet": parquet(pa.table({"a": [2**53 + 1], "b": ["x"]})),
    }
    rows = reader.rows(files, "*.parquet", type="parquet", columns={"a": "int"})
    assert rows == [(1, "x"), (2, "y"), (3, "z"), (None, "z"), (2**53 + 1, "x")]


def test_parts_of_parquet_with_other_types_are_refused(reader: Reader) -> None:
    files = {"1.parquet": parquet(pa.table({"a": [1]})), "2.parquet": parquet(pa.table({"a": ["x"]}))}
    with pytest.raises(UserError) as error:
        reader.rows(files, "*.parquet", type="parquet")
    assert str(error.value) == (
        "the column 'a' of sources[log] is int64 and string in different files; name its type, as in "
        "columns: {a: text}."
    )


def test_paths_of_the_home_folder_and_file_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "a b.csv"
    file.write_text("a\n")
    for path in ("~/a b.csv", file.as_uri(), f"file://localhost{tmp_path}/a%20b.csv", str(tmp_path / "a*.csv")):
        assert find_files("log", Source(path)) == [str(file)]


def test_a_bucket(tmp_path: Path) -> None:
    with s3_server() as (_, store):
        reader = Reader(tmp_path)
        for name, content in {"b": b"a\n2\n", "a": b"a\n1\n", "_SUCCESS": b""}.items():
            store.pipe(f"{BUCKET}/log/day=1/{name}{'.csv' if content else ''}", content)
        work = tmp_path / "work"
        work.mkdir()
        reader.engine = DuckDBEngine(work, memory="0.25GB", threads=1)
        for pattern in (f"s3://{BUCKET}/log", f"s3://{BUCKET}/log/*/*.csv"):
            source = Source(pattern, columns={"a": "int"}, partitions={"day": "int"})
            assert reader.engine.rows(read_source(reader.engine, "log", source)) == [(1, 1), (2, 1)]
        store.pipe(f"{BUCKET}/parquet/day=1/part-0.parquet", parquet(pa.table({"a": [3]})))
        source = Source(f"s3://{BUCKET}/parquet", type="parquet", partitions={"day": "int"})
        assert reader.engine.rows(read_source(reader.engine, "log", source)) == [(3, 1)]
        with pytest.raises(UserError, match="of which no file exists"):
            find_files("log", Source(f"s3://{BUCKET}/lgo/*.csv"))
        reader.engine.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def test_files_behind_http(reader: Reader, tmp_path: Path) -> None:
    write_files(tmp_path / "web", {"log.csv": "a\n1\n", "log.parquet": parquet(pa.table({"a": [1]}))})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        (tmp_path / "work").mkdir()
        reader.engine = DuckDBEngine(tmp_path / "work", memory="0.25GB", threads=1)
        for kind in ("csv", "parquet"):
            source = Source(f"http://127.0.0.1:{server.server_port}/log.{kind}", type=kind, columns={"a": "int"})
            assert reader.engine.rows(read_source(reader.engine, "log", source)) == [(1,)]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_delta_table_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(UserError) as error:
        find_files("log", Source("table", type="delta"))
    assert str(error.value) == (
        "sources[log] is a Delta table, which needs deltalake; run: pip install 'stem_torchrec[delta]'"
    )


@pytest.mark.skipif(importlib.util.find_spec("deltalake") is None, reason="deltalake is not installed")
def test_only_the_files_of_the_newest_version_of_a_delta_table_count(reader: Reader) -> None:
    protocol = '{"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}\n'
    schema = r"{\"type\": \"struct\", \"fields\": [{\"name\": \"a\", \"type\": \"long\", \"nullable\": true, "
    schema += r"\"metadata\": {}}]}"
    meta = (
        f'{{"metaData": {{"id": "x", "format": {{"provider": "parquet", "options": {{}}}}, "schemaString": "{schema}", '
    )
    meta += '"partitionColumns": [], "configuration": {}, "createdTime": 0}}\n'
    add = '{"add": {"path": "%s", "partitionValues": {}, "size": 1, "modificationTime": 0, "dataChange": true}}\n'
    files = {
        "log/_delta_log/00000000000000000000.json": protocol + meta + add % "1.parquet" + add % "2.parquet",
        "log/_delta_log/00000000000000000001.json": '{"remove": {"path": "1.parquet", "dataChange": true}}\n',
        "log/1.parquet": parquet(pa.table({"a": [1]})),
        "log/2.parquet": parquet(pa.table({"a": [2]})),
    }
    assert reader.rows(files, "log", type="delta") == [(2,)]
