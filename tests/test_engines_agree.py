"""DuckDB and Spark make the same log of a spec, and transforms.json gives its columns without an engine."""

import gc
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
import pyarrow.parquet as pq
import pytest

from stem_torchrec.config.yaml_text import parse_yaml, to_yaml
from stem_torchrec.data.schema import load_schema
from stem_torchrec.expressions.value_types import arrow_type
from stem_torchrec.preparation.engines.engine import ROW
from stem_torchrec.preparation.engines.spark_engine import SparkEngine
from stem_torchrec.preparation.options import Engines, PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log
from stem_torchrec.preparation.specs.spec import Source
from stem_torchrec.preparation.transforms import apply_transforms, read_transforms
from stem_torchrec.runtime.errors import UserError

from every_kind import BY_COLUMN, RANDOM, SPEC, write_raw
from kuairand_files import ROOT
from raw_logs import tiktok
from test_raw_logs import WRITERS

pytestmark = [
    # Spark's gateway leaves its sockets and pipes to the collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning"),
]
ENGINES: tuple[Engines, ...] = ("duckdb", "spark")
FEW = ("user", "item", "tags")
"""Features of the specs that differ in their split and order."""
OF_EACH_KIND = {
    "features": ("user", "follows", "tags", "price_bucket", "hashed_tags", "slot"),
    "dense": ("price",),
}
"""A feature of each kind; the types that a kind may have are in the long tier."""


@pytest.fixture(scope="module")
def spark() -> Iterator[None]:
    """Two threads of Spark in this process, which the engine takes."""
    from pyspark.sql import SparkSession

    options = {
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        # Compiling each query takes longer than running it on a few rows.
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.files.minPartitionNum": "2",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
    }
    session = SparkSession.builder.master("local[2]").config(map=options).getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield
    session.stop()
    gc.collect()


def prepare(
    spec: Path, engine: Engines, raw: Path, *settings: str, report: bool = False, grown_from: Path | None = None
) -> Path:
    """The folder of the log that an engine makes, beside the spec."""
    earlier: dict[str, Any] = {} if grown_from is None else {"vocabularies": str(grown_from), "grow": True}
    out = spec.with_name(f"{spec.stem}_{engine}")
    options = PrepareOptions(
        spec=str(spec), out=str(out), set=(f"raw={raw}", *settings), engine=engine, threads=2, report=report, **earlier
    )
    prepare_log(options)
    return out


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("every_kind") / "raw")


@pytest.fixture(scope="module")
def log(raw: Path) -> Path:
    """The log that DuckDB makes of the spec with every kind of feature."""
    spec = raw.with_name("every_kind.yaml")
    spec.write_text(SPEC)
    return prepare(spec, "duckdb", raw)


def table_of(folder: Path) -> pa.Table:
    """All rows, in the order of the names of the files."""
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"part-{i:05}.parquet" for i in range(len(files))]
    return pa.concat_tables(pq.read_table(file) for file in files)


def assert_close(values: Any, expected: Any, place: str) -> None:
    """Equal, and floats to 1e-6; what is null, and of which type, is equal too."""
    if isinstance(expected, float) and isinstance(values, float):
        assert math.isclose(values, expected, rel_tol=1e-6, abs_tol=1e-6), place
    elif isinstance(expected, Mapping):
        assert list(values) == list(expected), place
        for name, value in expected.items():
            assert_close(values[name], value, f"{place}.{name}")
    elif isinstance(expected, list) and isinstance(values, list):
        assert len(values) == len(expected), place
        for i, value in enumerate(expected):
            assert_close(values[i], value, f"{place}[{i}]")
    else:
        assert values == expected, place


def assert_same_log(log: Path, expected: Path) -> None:
    names = {path.relative_to(expected) for path in expected.rglob("*") if not path.name.startswith("part-")}
    assert {path.relative_to(log) for path in log.rglob("*") if not path.name.startswith("part-")} == names
    for name in ("transforms.json", "schema.json"):
        assert_close(*(json.loads((folder / name).read_text()) for folder in (log, expected)), name)
    for path in (*(expected / "vocabulary").iterdir(), *(expected / "waiting").iterdir()):
        name = path.relative_to(expected)
        table, wanted = (pq.read_table(each / name) for each in (log, expected))
        assert table.schema.types == wanted.schema.types
        assert_close(table.to_pydict(), wanted.to_pydict(), str(name))
    for split in load_schema(str(expected)).splits:
        table, wanted = (table_of(folder / split) for folder in (log, expected))
        assert [str(kind) for kind in table.schema.types] == [
            str(kind).replace("item:", "element:") for kind in wanted.schema.types
        ]
        assert_close(table.to_pydict(), wanted.to_pydict(), split)


def test_spark_makes_the_log_of_duckdb_with_a_feature_of_each_kind(spark: None, raw: Path, tmp_path: Path) -> None:
    content = parse_yaml(SPEC)
    content |= {part: {name: content[part][name] for name in names} for part, names in OF_EACH_KIND.items()}
    spec = tmp_path / "spec.yaml"
    spec.write_text(to_yaml(content))
    assert_same_log(prepare(spec, "spark", raw), prepare(spec, "duckdb", raw))


@pytest.mark.long
def test_spark_makes_the_log_of_duckdb_with_every_kind_of_feature(spark: None, log: Path, raw: Path) -> None:
    assert_same_log(prepare(raw.with_name("every_kind.yaml"), "spark", raw), log)


@pytest.mark.long
def test_spark_grows_the_ids_of_an_earlier_log_as_duckdb_does(spark: None, raw: Path, tmp_path: Path) -> None:
    content = parse_yaml(SPEC)
    content["features"] |= {"user": {"vocabulary": {"min_count": 20, "forget_after": 1}}, "item": {"missing": "own"}}
    logs: dict[Engines, Path] = {}
    # The second log has more rows, but none of the users 3 and 6.
    for name, where in (("first", "row % 3 = 0"), ("second", "row % 3 > 0 and user % 3 > 0")):
        spec = tmp_path / f"{name}.yaml"
        spec.write_text(to_yaml(content | {"where": f"({content['where']}) and {where}"}))
        logs = {engine: prepare(spec, engine, raw, grown_from=logs.get(engine)) for engine in ENGINES}
        assert_same_log(logs["spark"], logs["duckdb"])
    waiting = pq.read_table(logs["duckdb"] / "waiting" / "user.parquet")
    assert 0 < len(waiting) < 9
    assert max(pq.read_table(logs["duckdb"] / "waiting" / "item.parquet")["missed"].to_pylist(), default=0) == 0
    ids = [pq.read_table(tmp_path / f"{name}_duckdb/vocabulary/user.parquet") for name in ("first", "second")]
    assert 0 < len(ids[0]) < len(ids[1])


@pytest.mark.long
@pytest.mark.parametrize("change", [RANDOM, BY_COLUMN], ids=["random", "by_column"])
def test_spark_makes_the_log_of_duckdb_in_each_split_and_order(
    spark: None, change: dict[str, Any], raw: Path, tmp_path: Path
) -> None:
    content = parse_yaml(SPEC) | change
    content["features"] = {name: content["features"][name] for name in FEW}
    content["features"]["follows"] = {"value": "follows", "hash": {"buckets": 9}}
    del content["dense"]
    spec = tmp_path / "spec.yaml"
    spec.write_text(to_yaml(content))
    assert_same_log(prepare(spec, "spark", raw), prepare(spec, "duckdb", raw))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1;1;tea;5;1;1;0;;;true;;;x;y", "the line has 14 cells, not 13"),
        pytest.param('1;1;tea;5;1;1;0;;;true;;;"x', "a quote is not closed", marks=pytest.mark.long),
        pytest.param(
            "1;1;tea;5;cheap;1;0;;;true;;;x",
            "column 'price' has 'cheap', which is not a number",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "1;1;tea;5;1;0.5;0;;;true;;;x",
            "column 'clicked' has '0.5', which is not a whole number",
            marks=pytest.mark.long,
        ),
        pytest.param("1;1;\udcff;5;1;1;0;;;true;;;x", "the byte 0xff at position", marks=pytest.mark.long),
    ],
)
def test_spark_and_duckdb_refuse_a_line_with_the_same_words(spark: None, line: str, words: str, tmp_path: Path) -> None:
    raw, spec = write_raw(tmp_path / "raw"), tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    path, messages = raw / "log_a.csv", []
    number = path.read_bytes().count(b"\n") + 1
    with path.open("ab") as file:
        file.write(f"{line}\r\n".encode(errors="surrogateescape"))
    for engine in ENGINES:
        with pytest.raises(UserError) as error:
            prepare(spec, engine, raw)
        messages.append(str(error.value))
        assert sorted(each.name for each in tmp_path.iterdir()) == ["raw", "spec.yaml"]
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"{path}, line {number}: {words}")
    assert "\n" not in messages[0]


def raw_rows(raw: Path, columns: Mapping[str, Any]) -> pa.Table:
    """The raw rows of the spec with every kind of feature, with the joined columns, once by their number."""
    import csv

    cells: dict[str, list[Any]] = {}
    for part in "ab":
        with (raw / f"log_{part}.csv").open(newline="") as file:
            for row in csv.DictReader(file, delimiter=";"):
                for name, cell in (row | {"part": part}).items():
                    cell = cell.strip()
                    cells.setdefault(name, []).append(None if cell in ("", "?") else cell)
    items = {item["item"]: item for item in reversed(pa_json.read_json(raw / "items.jsonl").to_pylist())}
    users = {}
    for file in sorted((raw / "users").rglob("*.parquet")):
        country = file.parent.name.split("=")[1]
        users |= {row["user"]: row | {"country": country} for row in pq.ParquetFile(file).read().to_pylist()}
    cells["user"] = [cell and int(cell.removesuffix(".0")) for cell in cells["user"]]
    sides = {"category": items, "brands": items, "sizes": items, "scores": items}
    sides |= {"city": users, "age": users, "follows": users, "country": users}
    for name, side in sides.items():
        key = cells["item" if side is items else "user"]
        cells[name] = [side.get(value, {}).get(name) for value in key]
    arrays = {}
    for name, kind in columns.items():
        target = {"timestamp": pa.timestamp("us"), "date": pa.date32()}.get(kind, arrow_type(kind))
        texts = pa.array(cells[name])
        arrays[name] = pc.cast(texts, target) if pa.types.is_string(texts.type) else texts.cast(target)
    table = pa.table(arrays)
    first = [cells["row"].index(number) for number in dict.fromkeys(cells["row"])]
    return table.take(first)


def test_transforms_applied_to_raw_rows_give_the_columns_of_the_log(log: Path, raw: Path) -> None:
    transforms = read_transforms(log)
    rows = raw_rows(raw, transforms.types)
    [batch] = rows.combine_chunks().to_batches()
    served = pa.Table.from_batches([apply_transforms(transforms, batch)])
    schema = load_schema(str(log))
    names = [*(feature.name for feature in schema.sparse_features), *schema.dense_features]
    names += [feature.weights for feature in schema.sparse_features if feature.weights]
    assert sorted(served.column_names) == sorted(names)
    place = {number: i for i, number in enumerate(rows["row"].to_pylist())}
    for split in schema.splits:
        written = table_of(log / split)
        same_rows = served.take([place[number] for number in written["row"].to_pylist()])
        for name in names:
            assert_close(same_rows[name].to_pylist(), written[name].to_pylist(), name)


def test_the_ids_of_a_row_have_as_many_weights(log: Path) -> None:
    table = table_of(log / "train")
    weighted = [feature for feature in load_schema(str(log)).sparse_features if feature.weights]
    assert len(weighted) == 5
    for feature in weighted:
        assert lengths(table[feature.name]) == lengths(table[feature.weights]), feature.name


def lengths(column: pa.ChunkedArray) -> list[int]:
    return [len(value) if isinstance(value, list) else int(value is not None) for value in column.to_pylist()]


def test_a_value_has_several_hashed_ids_of_one_table(log: Path) -> None:
    table = table_of(log / "train")
    ids = {tuple(each) for each in table["hashed_user"].to_pylist() if each is not None}
    assert {len(each) for each in ids} == {3}
    assert len(ids) == len(set(table["user"].to_pylist()) - {0})
    # A missing value is the last row of the table.
    assert [40] in table["hashed_item"].to_pylist()
    assert [30] in table["hashed_tags"].to_pylist()


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "datasets").glob("*.yaml")))
def test_spark_makes_the_log_of_duckdb_of_each_public_data_set(spark: None, name: str, tmp_path: Path) -> None:
    raw, spec = tmp_path / "raw", tmp_path / f"{name}.yaml"
    raw.mkdir()
    WRITERS[name.removesuffix("_by_time")](raw, 3000, 0)
    spec.write_text((ROOT / "datasets" / f"{name}.yaml").read_text())
    seconds = tiktok.DAYS * 86_400
    days = {"train_until": tiktok.FIRST_TIME + seconds * 8 // 10, "valid_until": tiktok.FIRST_TIME + seconds * 9 // 10}
    settings = [f"{key}={value}" for key, value in days.items() if name == "tiktok_by_time"]
    assert_same_log(prepare(spec, "spark", raw, *settings), prepare(spec, "duckdb", raw, *settings))


@pytest.mark.long
def test_spark_writes_the_report_of_duckdb(spark: None, raw: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC)
    texts = [(prepare(spec, engine, raw, report=True) / "report.md").read_text() for engine in ENGINES]
    assert texts[0] == texts[1]


@pytest.mark.long
def test_rows_that_spark_reads_in_parts_keep_their_order(spark: None, tmp_path: Path) -> None:
    paths = {tmp_path / "b.csv": range(1_800_000), tmp_path / "a.csv": range(1_800_000, 1_900_000)}
    for path, numbers in paths.items():
        path.write_text("i\n" + "".join(f"{i}\n" for i in numbers))
    engine = SparkEngine(tmp_path, memory=1)
    table = engine.keep("rows", engine.scan(list(map(str, paths)), Source(str(tmp_path)), {"i": "text"}))
    parts = (table[ROW] / 2**33).floor().cast("int64")
    [(number,)] = engine.rows(table.aggregate(number=parts.nunique()))
    assert number > len(paths)
    ordered = table.mutate(position=ibis.row_number().over(order_by=ROW))
    [(wrong,)] = engine.rows(ordered.aggregate(wrong=(ordered["position"] != ordered["i"].cast("int64")).sum()))
    assert wrong == 0
