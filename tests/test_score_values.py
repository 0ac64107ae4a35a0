"""stem-score makes the same values of the cells of a file as stem-prepare, whose engine has made the log of them."""

import csv
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.expressions.value_types import ValueType
from stem_torchrec.preparation.engines.duckdb_engine import DuckDBEngine
from stem_torchrec.preparation.rows.sources import read_source
from stem_torchrec.preparation.specs.spec import ColumnType, Source
from stem_torchrec.preparation.transforms import apply_transforms, read_transforms
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.serving.csv_batches import Dialect, csv_batches
from stem_torchrec.serving.raw_values import TypeMismatchError, typed
from stem_torchrec.serving.row_files import json_batches

from every_kind import SPEC, write_raw
from test_engines_agree import assert_close, prepare, raw_rows, table_of

TEXTS: dict[ColumnType, Sequence[str]] = {
    "int": ["7", "-7", "+7", "007", "7.", "7.00", "7.5", "1e3", "1e-1", "nan", "inf", "9223372036854775807",
            "-9223372036854775808", "9223372036854775808", "9007199254740993", "9.1e15", "", " 7", "7 ", "0x7", "seven",
            "1_000", "7\n"],
    "float": ["1", "1.5", ".5", "5.", "-1e3", "+1E-3", "1e400", "nan", "NaN", "-inf", "Infinity", "1,5", "1d", " 1", "",
              "1_0", "1\n"],
    "bool": ["true", "False", "T", "f", "YES", "n", "1", "0", "2", "on", "", "truee"],
    "date": ["2022-05-03", "2022-5-3", "2022-02-30", "0001-01-01", "9999-12-31", "2022", "2022-05-03 10:00", "", "x"],
    "timestamp": ["2022-05-03", "2022-5-3 10:00:00", "2022-05-03 10:00:00", "2022-05-03T10:00:00", "2022-05-03 10:00",
                  "2022-05-03 10:00:00.5", "2022-05-03T10:00:00.123456", "2022-05-03T10:00:00Z",
                  "2022-05-03 10:00:00+02:00", "2022-05-03 10:00:00-0330", "2022-05-03 25:00:00", "2022-02-30", "x"],
    "text": ["001", "", "a b", "é", "null"],
}  # fmt: skip
COLUMNS: dict[str, pa.Array] = {
    "int32": pa.array([1, -2, None], pa.int32()),
    "uint64": pa.array([1, 2**63 - 1, 2**63], pa.uint64()),
    "double": pa.array([1.0, 2.5, float("nan"), 2.0**53, None]),
    "decimal": pa.array([1, None, 3], pa.int64()).cast(pa.decimal128(22, 2)),
    "large decimal": pa.array(["1541234567890123456", str(2**63 - 1), None]).cast(pa.decimal128(38, 0)),
    "decimal beyond": pa.array([str(2**63), str(-(2**63)), str(-(2**63) - 1)]).cast(pa.decimal128(38, 0)),
    "long decimal": pa.array(["7.00000000000000000001", "7", "0.5"]).cast(pa.decimal128(38, 20)),
    "bool": pa.array([True, False, None]),
    "text": pa.array(["1", "2.5", "x", None]),
    "category": pa.array(["1", "2", None]).dictionary_encode(),
    "ints": pa.array([[1, None], [], None], pa.list_(pa.int32())),
    "doubles": pa.array([[1.0], [2.5, 3.0], None]),
    "texts": pa.array([["1", "2"], ["x"], [], None]),
    "timestamp": pa.array([0, 10**18, None], pa.timestamp("ns", "Europe/Rome")),
    "date": pa.array([0, 19_000, None], pa.date32()),
}


MORE = {
    # Cells of CSV may have lists as JSON has them.
    *((name, f"list<{kind}>") for name in ("text", "category") for kind in ("int", "float", "text")),
    ("ints", "list<text>"),
    # Preparation needs an expression for microseconds and days since 1970.
    *((name, kind) for name in ("int32", "uint64") for kind in ("timestamp", "date")),
}
"""Columns that are scored as values of a type, and that preparation refuses as such."""
pytestmark = pytest.mark.long


class OneCell:
    """What DuckDB makes of one cell of a Parquet file, alone, as a wrong one ends the query."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._files = folder, 0
        self._engine = DuckDBEngine(folder, memory="0.5GB", threads=1)

    def __call__(self, cell: pa.Array, kind: ColumnType) -> Any:
        """The value, or `wrong`."""
        self._files += 1
        file = self._folder / f"{self._files}.parquet"
        pq.write_table(pa.table({"column": cell}), file)
        try:
            [(value,)] = self._engine.rows(
                read_source(self._engine, "log", Source(str(file), "parquet", {"column": kind}))
            )
        except UserError:
            return "wrong"
        return in_one_form(value)


def in_one_form(value: Any) -> Any:
    """A value as expressions read it: NaN and infinity are null, lists have no nulls, and times are in UTC."""
    if isinstance(value, list):
        return [each for each in map(in_one_form, value) if each is not None]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.astimezone(UTC).replace(tzinfo=None) if isinstance(value, datetime) and value.tzinfo else value


def scored(cell: pa.Array, kind: ColumnType) -> Any:
    try:
        values, [wrong] = typed(cell, ValueType(kind))
    except TypeMismatchError:
        return "wrong"
    return "wrong" if wrong else in_one_form(values.to_pylist()[0])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> OneCell:
    return OneCell(tmp_path_factory.mktemp("engine"))


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_have_the_values_that_preparation_gives_them(prepared: OneCell, kind: ColumnType) -> None:
    cells = {text: pa.array([text]) for text in TEXTS[kind]}
    expected = {text: prepared(cell, kind) for text, cell in cells.items()}
    assert {text: scored(cell, kind) for text, cell in cells.items()} == expected
    # As a column, and as values of JSON, they are the same.
    for column in (pa.array(list(cells)), list(cells)):
        values, wrong = typed(column, ValueType(kind))
        rows = zip(map(in_one_form, values.to_pylist()), wrong, strict=True)
        assert ["wrong" if bad else value for value, bad in rows] == list(expected.values())


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_arrow_have_the_values_that_preparation_gives_them(prepared: OneCell, name: str) -> None:
    different = {}
    for kind in ValueType:
        for i in range(len(COLUMNS[name])) if kind != ValueType.NULL else ():
            cell = COLUMNS[name].slice(i, 1)
            if (name, kind) in MORE:
                continue
            of_engine, own = prepared(cell, kind.value), scored(cell, kind.value)
            if of_engine != own:
                different[f"{cell[0].as_py()!r} as {kind}"] = (of_engine, own)
    assert different == {}


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_rows_written_as_text_give_every_column_of_the_log(log_of_every_kind: Path, tmp_path: Path, name: str) -> None:
    transforms = read_transforms(log_of_every_kind)
    # `row` numbers the rows, and is read by no transform.
    rows = raw_rows(log_of_every_kind.parent / "raw", {**transforms.types, "row": ValueType.INT})
    texts = [
        {
            column: value if value is None or isinstance(value, int | float | list) else str(value)
            for column, value in row.items()
        }
        for row in rows.to_pylist()
    ]
    file = tmp_path / name
    if name.endswith("jsonl"):
        file.write_text("".join(json.dumps(row) + "\n" for row in texts))
    else:
        with file.open("w", newline="") as output:
            writer = csv.DictWriter(output, rows.column_names)
            writer.writeheader()
            writer.writerows(
                {c: json.dumps(value) if isinstance(value, list) else value for c, value in row.items()}
                for row in texts
            )
    columns = list(rows.column_names)
    with file.open("rb") as opened:
        batches = (
            list(json_batches(opened, name, columns, 50))
            if name.endswith("jsonl")
            else list(csv_batches(opened, name, columns, batch_rows=50, dialect=Dialect()))
        )
    parts = []
    for batch in batches:
        pairs = {column: typed(batch.columns[column], kind) for column, kind in transforms.types.items()}
        assert not any(wrong.any() for _, wrong in pairs.values())
        parts.append(apply_transforms(transforms, pa.record_batch({c: values for c, (values, _) in pairs.items()})))
    made = pa.Table.from_batches(parts)
    place = {number: i for i, number in enumerate(rows["row"].to_pylist())}
    for split in ("train", "valid", "test"):
        written = table_of(log_of_every_kind / split)
        same_rows = made.take([place[number] for number in written["row"].to_pylist()])
        for column in made.column_names:
            assert_close(same_rows[column].to_pylist(), written[column].to_pylist(), column)


@pytest.fixture(scope="module")
def log_of_every_kind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("every_kind")
    raw, spec = write_raw(folder / "raw"), folder / "spec.yaml"
    spec.write_text(SPEC)
    return prepare(spec, "duckdb", raw)
