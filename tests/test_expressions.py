"""Every function of expressions against values written by hand, its types, and the JSON of trees."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import ibis
import pyarrow as pa
import pytest

from stem_torchrec.expressions.arrow_evaluation import evaluate
from stem_torchrec.expressions.expression import Call, Column, Expression, Literal, columns_of, from_json, to_json
from stem_torchrec.expressions.functions import FUNCTIONS, KINDS, functions_page, type_of
from stem_torchrec.expressions.relational import to_ibis
from stem_torchrec.expressions.sql import parse_expression
from stem_torchrec.expressions.time_zones import zone_parameters
from stem_torchrec.expressions.value_types import BOOL, INT, TEXT, arrow_type

from expression_cases import CASES, SAMPLE, TYPES


def calls_in(tree: Expression) -> set[str]:
    if not isinstance(tree, Call):
        return set()
    return {tree.function}.union(*map(calls_in, tree.arguments))


def close(values: list[Any]) -> list[Any]:
    # The libraries of ln and exp differ in the last bit of a float.
    return [pytest.approx(value, rel=1e-15) if isinstance(value, float) else value for value in values]


def test_every_function_is_in_a_case() -> None:
    assert set().union(*(calls_in(tree) for tree, _ in CASES)) == set(FUNCTIONS) - {"vocabulary"}
    assert sum(map(len, KINDS.values())) == len(FUNCTIONS)


@pytest.mark.quick
def test_arrow_computes_the_values_written_by_hand() -> None:
    for tree, expected in CASES:
        values = evaluate(tree, SAMPLE, TYPES)
        assert values.type == arrow_type(type_of(tree, TYPES)), tree
        assert values.to_pylist() == close(expected), tree


def test_duckdb_computes_the_values_written_by_hand() -> None:
    table = ibis.table(ibis.Schema.from_pyarrow(SAMPLE.schema), name="sample")
    columns = {name: table[name] for name in table.columns}
    with duckdb.connect() as connection:
        connection.register("sample", pa.Table.from_batches([SAMPLE]))
        for tree, expected in CASES:
            value = to_ibis(tree, columns, TYPES, engine="duckdb")
            query = ibis.to_sql(table.select(value=value), dialect="duckdb")
            assert [row[0] for row in connection.execute(query).fetchall()] == close(expected), query


def test_a_slice_of_a_batch_has_the_values_of_its_rows() -> None:
    for tree, expected in CASES:
        assert len(evaluate(tree, SAMPLE.slice(0, 0), TYPES)) == 0
        assert evaluate(tree, SAMPLE.slice(2, 2), TYPES).to_pylist() == close(expected[2:4])


def test_a_tree_is_the_same_after_json() -> None:
    for tree, _ in CASES:
        assert from_json(json.loads(json.dumps(to_json(tree))), "tree") == tree
    assert to_json(parse_expression("a + 1")) == {"call": "add", "arguments": [{"column": "a"}, {"literal": 1}]}


def test_names_are_read_in_any_case_and_in_quotes() -> None:
    tree = Call("lower", (Column("marital-status"),))
    assert parse_expression('LOWER("marital-status")') == tree
    assert parse_expression('lower( ("marital-status") ) -- the status') == tree
    assert parse_expression("'it''s'") == Literal("it's")
    assert parse_expression("-9223372036854775808") == Literal(-(2**63))
    assert columns_of(parse_expression("a + b * a")) == ["a", "b"]


def test_sql_that_stands_for_other_functions() -> None:
    assert parse_expression("a is not null") == parse_expression("not (a is null)")
    assert parse_expression("a between 1 and 2") == parse_expression("a >= 1 and a <= 2")
    assert parse_expression("if(a, 1, 2)") == parse_expression("case when a then 1 else 2 end")
    assert parse_expression("a::int") == parse_expression("cast(a as bigint)")
    assert parse_expression("hour(t, 'Asia/Tokyo')") == parse_expression("hour(in_zone(t, 'Asia/Tokyo'))")


def test_numbers_of_a_float_and_an_int_are_floats() -> None:
    assert type_of(parse_expression("1 + 1"), {}) == INT
    assert type_of(parse_expression("1 + 1.0"), {}) == "float"
    assert type_of(parse_expression("case when true then null else 1 end"), {}) == INT
    assert type_of(parse_expression("cast(1 as text)"), {}) == TEXT
    assert type_of(parse_expression("1 in (2)"), {}) == BOOL


@pytest.mark.parametrize("name", ["Asia/Shanghai", "America/New_York", "Africa/Casablanca", "Australia/Lord_Howe"])
def test_a_zone_is_as_the_standard_library_has_it(name: str) -> None:
    starts = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=977 * i) for i in range(1100)]
    starts += [
        datetime.fromtimestamp(edge // 10**6 + by, UTC) for edge in zone_parameters(name)["edges"] for by in (-1, 0)
    ]
    starts = [start for start in starts if 1970 <= start.year < 2100]
    batch = pa.record_batch({"t": pa.array(starts, pa.timestamp("us", "UTC"))})
    text = f"date_number(t, '{name}') * 10000 + hour(t, '{name}') * 100 + minute(t, '{name}')"
    clocks = [start.astimezone(ZoneInfo(name)).strftime("%Y%m%d%H%M") for start in starts]
    assert evaluate(parse_expression(text), batch, {"t": "timestamp"}).to_pylist() == list(map(int, clocks))


def test_a_vocabulary_gives_positions_and_0_for_what_it_lacks() -> None:
    batch = pa.record_batch({"city": ["b", None, "z"], "tags": [[7, 9], [], None]})
    types = {"city": TEXT, "tags": TYPES["li"]}
    vocabularies = {"city": pa.array(["a", "b"]), "tags": pa.array([7], pa.int32())}

    def ids(name: str, null_id: int) -> list[Any]:
        call = Call("vocabulary", (Column(name),), {"name": name, "first_id": 1, "null_id": null_id})
        return evaluate(call, batch, types, vocabularies=vocabularies).to_pylist()

    assert ids("city", -1) == [2, None, 0]
    assert ids("city", 3) == [2, 3, 0]
    assert ids("tags", 0) == [[1, 0], [], None]


def test_a_column_may_come_in_other_types_of_arrow() -> None:
    texts = pa.array(["a", None]).dictionary_encode()
    batch = pa.record_batch({"s": texts, "i": pa.array([1, 2], pa.uint8()), "d": pa.array([1, 2])})
    assert evaluate(Column("s"), batch, {"s": TEXT}).to_pylist() == ["a", None]
    assert evaluate(parse_expression("i / 2"), batch, {"i": INT}).to_pylist() == [0.5, 1.0]
    assert evaluate(parse_expression("day(d)"), batch, {"d": TYPES["d"]}).to_pylist() == [2, 3]


def test_the_page_of_functions_has_each_that_sql_may_have() -> None:
    page = functions_page()
    for function in FUNCTIONS.values():
        assert function.summary.endswith("."), function.name
        assert (function.summary in page) == (not function.fitted), function.name
    assert "| `concat(a, b), a \\|\\| b` | Texts joined to one; null if any is null. |" in page
