"""Engines compute what Arrow computes: DuckDB for random expressions, Spark for those of every function."""

import gc
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stem_torchrec.expressions.arrow_evaluation import evaluate
from stem_torchrec.expressions.expression import Call, Column, Expression, text_of
from stem_torchrec.expressions.functions import type_of
from stem_torchrec.expressions.relational import to_ibis
from stem_torchrec.expressions.value_types import ValueType, arrow_type

from expression_cases import CASES, SAMPLE, TYPES
from expression_strategies import COLUMNS, ROWS, batches, trees

TREES = 6
"""Expressions for each batch of rows: a query costs more than an expression in it."""


@pytest.fixture(scope="module")
def connection() -> Any:
    with duckdb.connect(config={"threads": 1}) as connection:
        yield connection


def query_of(expressions: Sequence[Expression], table: Any, types: Mapping[str, ValueType], engine: Any) -> Any:
    columns = {name: table[name] for name in table.columns}
    return table.select(**{f"v{i}": to_ibis(tree, columns, types, engine=engine) for i, tree in enumerate(expressions)})


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(expressions=st.lists(trees(), min_size=TREES, max_size=TREES), batch=batches())
def test_duckdb_and_arrow_agree_on_random_expressions(
    connection: Any, expressions: list[Expression], batch: pa.RecordBatch
) -> None:
    table = ibis.table(ibis.Schema.from_pyarrow(batch.schema), name="batch")
    query = ibis.to_sql(query_of(expressions, table, COLUMNS, "duckdb"), dialect="duckdb", pretty=False)
    connection.register("batch", pa.Table.from_batches([batch]))
    rows = connection.execute(query).fetchall()
    for tree, by_engine in zip(expressions, zip(*rows, strict=True), strict=True):
        values = evaluate(tree, batch, COLUMNS)
        assert values.type == arrow_type(type_of(tree, COLUMNS))
        assert len(values) == ROWS
        assert list(by_engine) == values.to_pylist(), tree


def test_not_binds_what_it_stands_around(connection: Any) -> None:
    table = ibis.table({"bool_0": "boolean"}, name="flags")
    negated = Call("not", (Column("bool_0"),))
    expressions = [Call("is_null", (negated,)), Call("equal", (negated, Column("bool_0"))), Call("not", (negated,))]
    query = ibis.to_sql(query_of(expressions, table, COLUMNS, "duckdb"), dialect="duckdb", pretty=False)
    connection.register("flags", pa.table({"bool_0": pa.array([None, True, False])}))
    assert connection.execute(query).fetchall() == [(True, None, None), (False, False, True), (False, False, False)]


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    """Two threads of Spark in this process, and Ibis's connection to them."""
    from pyspark.sql import SparkSession

    options = {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "2", "spark.sql.session.timeZone": "UTC"}
    builder = SparkSession.builder.master("local[2]").config(map=options)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session, ibis.pyspark.connect(session)
    session.stop()
    gc.collect()


def by_spark(
    spark: Any, ansi: bool, expressions: Sequence[Expression], batch: pa.RecordBatch, types: Any, folder: Path
) -> list[list[Any]]:
    session, connection = spark
    session.conf.set("spark.sql.ansi.enabled", str(ansi).lower())
    path = folder / f"{uuid.uuid4()}.parquet"
    pq.write_table(pa.Table.from_batches([batch]), path)
    query = query_of(expressions, connection.read_parquet(str(path)), types, "spark")
    rows = session.sql(connection.compile(query)).collect()
    return [list(column) for column in zip(*rows, strict=True)]


def close(values: list[Any]) -> list[Any]:
    # Java's ln and exp differ from C's in the last bits.
    return [pytest.approx(value, rel=1e-14) if isinstance(value, float) else value for value in values]


@pytest.mark.long
# Spark's gateway leaves its sockets to the collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("ansi", [True, False])
def test_spark_computes_the_values_written_by_hand(spark: Any, ansi: bool, tmp_path: Path) -> None:
    computed = by_spark(spark, ansi, [tree for tree, _ in CASES], SAMPLE, TYPES, tmp_path)
    wrong = {
        text_of(tree): values
        for (tree, expected), values in zip(CASES, computed, strict=True)
        if values != close(expected)
    }
    assert not wrong
