"""What expressions refuse, each in one sentence that names the text, the part and the fix."""

import functools
from typing import Any

import ibis
import pyarrow as pa
import pytest

from stem_torchrec.expressions.arrow_evaluation import evaluate
from stem_torchrec.expressions.expression import Call, Column, from_json
from stem_torchrec.expressions.functions import type_of
from stem_torchrec.expressions.relational import to_ibis
from stem_torchrec.expressions.sql import parse_expression
from stem_torchrec.expressions.value_types import BOOL, FLOAT, INT, INTS, TEXT, TIMESTAMP, type_of_arrow
from stem_torchrec.runtime.errors import UserError

TYPES = {"age": INT, "city": TEXT, "tags": INTS, "time": TIMESTAMP, "price": FLOAT, "old": BOOL}


def refusal(text: str) -> str:
    with pytest.raises(UserError) as error:
        type_of(parse_expression(text), TYPES)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("age +", "is not SQL: a part is missing at line 1, column 5."),
        ("", "is not SQL: No expression was parsed from ''."),
        ("lowr(city)", "calls 'lowr', which is no function; did you mean 'lower'?"),
        ("bucket(age, 1)", "calls 'bucket', which is no function."),
        ("log.age", "has `log.age`, which is not supported."),
        ("age like 'x'", "has `like`, which is not supported; use starts_with or contains."),
        ("age in (select 1)", "has `age IN (SELECT 1)`, which is not supported."),
        ("tags[1]", "has an index in brackets, which is not supported; element(list, 1) is the first element."),
        ("age; city", "has a second statement, which is not supported."),
        ("sum(age) over ()", "has a window, which is not supported."),
        ("age in (1, null)", "has null in a list, which equals nothing; use `is null`."),
        (
            "cast(age as decimal(3, 1))",
            "casts to DECIMAL(3, 1), but must cast to int, bigint, float, double, text, boolean or date.",
        ),
        ("substr(city, age, 2)", "has `age` where only a constant may stand."),
        ("replace(city, null, 'a')", "has null where only a constant may stand."),
        ("substr(city)", "gives substr 1 arguments; it is written substr(text, 2, 3)."),
        ("if(old, 1)", "gives if 2 arguments; it is written if(a, b, c)."),
        ("in_zone(time)", "gives in_zone 1 arguments; it is written in_zone(time, 'Asia/Shanghai')."),
    ],
)
def test_sql_outside_of_the_subset_is_refused(text: str, problem: str) -> None:
    assert refusal(text) == f"expression {text!r} {problem}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("agee + 1", "there is no column 'agee'; did you mean 'age'?"),
        ("lower(city, age)", "expression lower(city, age): lower takes 1 argument, but has 2."),
        ("lower(age)", "expression lower(age): lower takes text, but its argument 1, age, is int."),
        ("age + city", "expression add(age, city): add takes int or float, but its argument 2, city, is text."),
        (
            "city = 1",
            "expression equal(city, 1): equal takes text, as the ones before it, but its argument 2, 1, is int.",
        ),
        ("age and old", "expression and(age, old): and takes bool, but its argument 1, age, is int."),
        (
            "if(old, age, city)",
            "expression case(old, age, city): case takes int, as the values before it, but its argument 3, city, is"
            " text.",
        ),
        (
            "cast(price as text)",
            "expression cast(price, 'text'): cast takes bool, int or text, but its argument 1, price, is float.",
        ),
        (
            "element(tags, 0)",
            "expression element(tags, 0): index is 0, but must be a whole number other than 0.",
        ),
        (
            "split(city, '')",
            "expression split(city, ''): separator is '', but must be text that is not empty.",
        ),
        (
            "hour(time, 'Asia/Shangai')",
            "expression \"hour(time, 'Asia/Shangai')\": 'Asia/Shangai' is no time zone; did you mean 'Asia/Shanghai'?",
        ),
        (
            "1e999",
            "a number in expression '1e999' is inf, but must be text, true, false, null or a number of 64 bits.",
        ),
        (
            "+".join(["age"] * 70),
            "'age+age+age+age+age+age+age+age+age+age+age+age+age+age+... has calls nested deeper than 64; compute"
            " parts of it as columns.",
        ),
    ],
)
def test_types_and_constants_are_checked_before_anything_runs(text: str, sentence: str) -> None:
    assert refusal(text) == sentence


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (5, "value is 5, but must have one of column, literal and call."),
        ({"column": 5}, "value.column is 5, but must be text."),
        ({"column": "a", "x": 1}, "value has a field 'x', which a column has not."),
        ({"call": "add", "arguments": 5}, "value.arguments is 5, but must be a list."),
        (
            {"call": "add", "arguments": [{"literal": [1]}]},
            "value.arguments[0].literal is [1], but must be text, true, false, null or a number of 64 bits.",
        ),
        (
            {"call": "bucket", "arguments": [], "parameters": {"edges": [True]}},
            "value.parameters.edges[0] is True, but must be a number.",
        ),
    ],
)
def test_json_that_is_no_tree_is_refused_with_its_place(content: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        from_json(content, "value")
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (Call("addd", ()), "expression addd(): there is no function 'addd'; did you mean 'add'?"),
        (Call("bucket", (Column("age"),)), "expression bucket(age): bucket needs the parameter 'edges'."),
        (
            Call("bucket", (Column("age"),), {"edges": (3, 1)}),
            "expression bucket(age, [2 values]): edges is (3, 1), but must be numbers that do not fall.",
        ),
        (
            Call("lower", (Column("city"),), {"size": 1}),
            "expression lower(city, 1): lower has no parameter 'size'.",
        ),
        (
            Call("in_zone", (Column("time"),), {"zone": "x", "edges": (1, 2), "offsets": (1,)}),
            "in_zone has 2 edges, but 1 offsets.",
        ),
    ],
)
def test_a_tree_that_no_sql_gave_is_checked_too(call: Call, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        type_of(call, TYPES)
    assert str(error.value) == sentence


def test_an_expression_that_engines_would_repeat_too_often_is_refused() -> None:
    table = ibis.table({"price": "float64"}, name="table")
    deep = functools.reduce(lambda tree, _: Call("ln", (tree,)), range(40), Column("price"))
    sentence = r"^expression '(ln\()+ln\.\.\. becomes a query of \d{14} operations, but may have 200000; compute parts"
    with pytest.raises(UserError, match=sentence):
        to_ibis(deep, {"price": table.price}, TYPES, engine="duckdb")


def test_columns_and_vocabularies_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"^column 'age' holds text, but is declared as int\.$"):
        evaluate(Column("age"), pa.record_batch({"age": ["a"]}), TYPES)
    with pytest.raises(UserError, match=r"^the rows have no column 'age'; did you mean 'ag'\?$"):
        evaluate(Column("age"), pa.record_batch({"ag": ["a"]}), TYPES)
    with pytest.raises(UserError, match=r"^column 'a' is decimal128\(3, 0\), but must be one of bool, int, "):
        type_of_arrow(pa.decimal128(3), "a")
    lookup = Call("vocabulary", (Column("city"),), {"name": "city", "first_id": 1, "null_id": 0})
    with pytest.raises(UserError, match=r"there is no vocabulary 'city'; did you mean 'citi'\?$"):
        evaluate(lookup, pa.record_batch({"city": ["a"]}), TYPES, vocabularies={"citi": pa.array(["a"])})
    with pytest.raises(UserError, match=r"an engine joins a vocabulary, only Arrow looks values up in one\.$"):
        to_ibis(lookup, {}, TYPES, engine="duckdb")
