"""The rules of guessing, each on the facts of one column."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_torchrec.config.yaml_text import parse_yaml
from stem_torchrec.expressions.expression import Column
from stem_torchrec.expressions.sql import parse_expression
from stem_torchrec.expressions.value_types import ValueType
from stem_torchrec.preparation.guessing.column_names import (
    feature_name,
    names_feedback,
    names_id,
    names_result,
    user_rank,
)
from stem_torchrec.preparation.guessing.commented_yaml import lines, printable, text_of
from stem_torchrec.preparation.guessing.facts import Facts, Separated
from stem_torchrec.preparation.guessing.features import Choice, Known, choose, list_text
from stem_torchrec.preparation.guessing.labels import candidates, column_text, parse_labels
from stem_torchrec.preparation.guessing.leaks import leaks_and_suspects
from stem_torchrec.preparation.guessing.times import TimeColumn, time_column
from stem_torchrec.runtime.errors import UserError

_T = ValueType
NOTHING = Known({})


def column(name: str, kind: ValueType, **facts: Any) -> Facts:
    """Facts of a column of 1000 rows."""
    return Facts(**({"name": name, "type": kind, "rows": 1000, "missing": 0, "distinct": 300} | facts))


def chosen(facts: Facts, known: Known = NOTHING) -> Choice:
    """What becomes of a column; of a number, the dense feature."""
    choice, *others = choose(facts, known)
    assert [(each.kind, each.name) for each in others] == (
        [("features", f"{choice.name}_bucket")] if choice.kind == "dense" else []
    )
    return choice


def test_text_has_a_vocabulary() -> None:
    assert chosen(column("city", _T.TEXT)) == Choice("features", "city", "text, 300 values")


def test_a_missing_value_has_an_id_of_its_own() -> None:
    choice = chosen(column("city", _T.TEXT, missing=56))
    assert choice == Choice("features", "city", "text, 300 values, 5.6 % missing", {"missing": "own"})


def test_a_name_that_sql_would_not_read_gets_a_value() -> None:
    choice = chosen(column("native-country", _T.TEXT, missing=1))
    assert (choice.name, choice.content) == ("native_country", {"value": '"native-country"', "missing": "own"})


@pytest.mark.parametrize(
    ("name", "distinct", "least", "greatest", "kind"),
    [
        ("level_of_noise", 50, 0, 900, "features"),
        ("noise", 51, 0, 900, "dense"),
        ("item_id", 900, 5, 99_999, "features"),
        ("itemId", 900, 5, 99_999, "features"),
        ("user_city", 400, -1, 99_999, "features"),
        ("hours_per_week", 94, 1, 99, "dense"),
        ("col1", 1200, 0, 2000, "features"),
        ("col1", 1200, 0, 20_000, "dense"),
        ("price", 1200, 0, 2000, "dense"),
    ],
)
def test_whole_numbers_are_told_apart_or_measured(
    name: str, distinct: int, least: int, greatest: int, kind: str
) -> None:
    facts = column(name, _T.INT, distinct=distinct, least=least, greatest=greatest, mean=5.0, median=5.0, rows=9000)
    assert chosen(facts).kind == kind


def test_a_skewed_number_is_dense_with_its_logarithm() -> None:
    facts = column("price", _T.FLOAT, least=0.0, greatest=9000.0, mean=40.0, median=3.0, missing=20)
    content = {"log": True, "standardize": True, "missing": {"fill": "mean", "flag": True}}
    assert chosen(facts).content == content
    assert chosen(facts).kind == "dense"
    even = column("price", _T.FLOAT, least=0.0, greatest=9.0, mean=4.0, median=3.0, missing=2)
    assert chosen(even).content == {"standardize": True}
    assert "log" not in (chosen(column("x", _T.FLOAT, least=-5.0, greatest=9e9, mean=40.0)).content or {})


def test_a_number_is_cut_into_buckets_beside_and_a_value_of_half_the_rows_has_its_own() -> None:
    _, buckets = choose(column("price", _T.FLOAT, least=0.0, greatest=9.0, mean=4.0, median=3.0), NOTHING)
    assert buckets.content == {"value": "price", "buckets": {"quantiles": 30}}
    _, buckets = choose(column("capital-gain", _T.INT, least=0, greatest=9999, median=0.0), NOTHING)
    assert (buckets.name, buckets.content) == (
        "capital_gain_bucket",
        {"value": 'nullif("capital-gain", 0)', "buckets": {"quantiles": 30}, "missing": "own"},
    )


def test_lists_are_features_that_are_averaged() -> None:
    facts = column("tags", _T.TEXT, lists=Separated("|", of_ints=False, brackets=False), missing=4)
    content = {"value": "split(tags, '|')", "pooling": "mean", "missing": "none"}
    assert (chosen(facts).kind, chosen(facts).content) == ("features", content)
    assert chosen(column("tags", _T.INTS)).content == {"pooling": "mean"}
    assert chosen(column("vector", _T.FLOATS)).kind == "left out"


def test_the_expression_for_lists_in_brackets_is_one() -> None:
    for of_ints in (True, False):
        text = list_text("tags", Separated(",", of_ints=of_ints, brackets=True))
        parse_expression(text)
        assert text.startswith("ints(split(" if of_ints else "split(")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (column("click", _T.INT, distinct=2, least=0, greatest=1), "labels are made from it: clicked"),
        (column("city", _T.TEXT), "--drop names it"),
        (column("x", _T.TEXT, missing=1000, distinct=0), "no row has a value"),
        (column("x", _T.INT, distinct=1, least=3, greatest=3), "all rows have the same value"),
        (column("session", _T.TEXT, distinct=1000), "looks like a row id: each row has a value of its own"),
        (
            column("price", _T.INT, distinct=1000, least=0, greatest=999, rises=True),
            "looks like a row id: each row has a number of its own",
        ),
        (
            column("is_like", _T.INT, distinct=2, least=0, greatest=1),
            "named like feedback, which is not known before the exposure",
        ),
        (
            column("play_time_ms", _T.INT, least=0, greatest=90_000),
            "named like feedback, which is not known before the exposure",
        ),
        (column("odd", _T.TEXT), "looks like a leak: it alone has an AUC of 0.990 for clicked"),
        (
            column("story", _T.TEXT, distinct=900, length=300.0),
            "prose: 300 characters on average, and most texts occur once",
        ),
    ],
)
def test_a_column_is_left_out_for_a_reason(facts: Facts, reason: str) -> None:
    leaks = {"odd": "alone has an AUC of 0.990 for clicked"}
    known = Known({"click": "clicked"}, frozenset({"city"}), leaks)
    assert chosen(facts, known) == Choice("left out", facts.name, reason)


def test_a_suspect_stays_and_is_marked() -> None:
    known = Known({}, suspects={"relationship": "alone has an AUC of 0.900 for single"})
    reason = chosen(column("relationship", _T.TEXT), known).reason
    assert reason == "CHECK whether it is known before: it alone has an AUC of 0.900 for single; text, 300 values"


def test_a_unique_measure_stays_dense() -> None:
    assert chosen(column("price", _T.INT, distinct=1000, least=0, greatest=999)).kind == "dense"


@pytest.mark.parametrize(
    ("name", "kind", "least", "greatest", "unit"),
    [
        ("time_ms", _T.INT, 1_650_812_741_436, 1_651_812_741_436, "ms"),
        ("ts", _T.INT, 1_650_812_741, 1_651_812_741, "s"),
        ("event_time", _T.INT, 1_650_812_741_436_000, 1_651_812_741_436_000, "us"),
        ("date", _T.INT, 20220425, 20220505, "number"),
        ("at", _T.TIMESTAMP, None, None, "timestamp"),
        ("day", _T.DATE, None, None, "date"),
        ("price", _T.INT, 1_650_812_741, 1_651_812_741, None),
        ("play_time", _T.INT, 0, 90_000, None),
        ("time", _T.FLOAT, 1.65e9, 1.66e9, None),
    ],
)
def test_times_are_recognized(name: str, kind: ValueType, least: Any, greatest: Any, unit: str | None) -> None:
    expected = None if unit is None else TimeColumn(name, unit)
    assert time_column(column(name, kind, least=least, greatest=greatest)) == expected


def test_the_time_of_the_split_gives_hour_and_weekday() -> None:
    facts = column("time_ms", _T.INT, least=1_650_812_741_436, greatest=1_651_812_741_436)
    hour, weekday = choose(facts, Known({}, time=TimeColumn("time_ms", "ms"), days=20))
    assert (hour.name, hour.content) == ("hour", {"value": "hour(from_unix_ms(time_ms))"})
    assert (weekday.name, weekday.content) == ("weekday", {"value": "weekday(from_unix_ms(time_ms))"})
    _, few = choose(facts, Known({}, time=TimeColumn("time_ms", "ms"), days=5))
    assert few == Choice("left out", "weekday of time_ms", "5 days are too few to learn weekdays from")
    assert chosen(facts, Known({}, time=TimeColumn("ts", "s"))).kind == "left out"


def test_names_tell_what_columns_are() -> None:
    assert [name for name in ("user_id", "userId", "UID", "item_id", "paid", "grid") if names_id(name)] == [
        *("user_id", "userId", "UID", "item_id")
    ]
    assert user_rank("userId") == 0
    assert user_rank("follow_user_num") is None
    assert names_feedback("is_click")
    assert names_result("comment_stay_time")
    assert not names_result("duration_ms")


def test_candidates_for_labels_are_ranked_by_name() -> None:
    facts = {
        each.name: each
        for each in (
            column("is_new", _T.BOOL, distinct=2),
            column("city", _T.TEXT),
            column("click", _T.INT, distinct=2, least=0, greatest=1),
            column("rating", _T.INT, distinct=5, least=1, greatest=5),
            column("income", _T.TEXT, distinct=2, least="<=50K", greatest=">50K"),
        )
    }
    assert candidates(facts) == [
        *("--label click", '--label rating="rating >= 5"', "--label is_new", "--label income=\"income = '>50K'\"")
    ]


def test_a_label_is_a_name_and_an_expression() -> None:
    options = ["income=income = '>50K'", "like", "is-new"]
    assert parse_labels(options, ["income", "like", "is-new"]) == {
        "income": "income = '>50K'",
        "like": '"like"',
        "is_new": '"is-new"',
    }


@pytest.mark.parametrize("option", ["income = '>50K'", "=a", "a=", "1a=b"])
def test_a_label_without_name_or_expression_is_refused(option: str) -> None:
    with pytest.raises(UserError) as error:
        parse_labels([option], ["income"])
    assert str(error.value) == (
        f'--label {option} has no name or expression; write --label NAME="EXPRESSION", as in --label '
        "income=\"income = '>50K'\"."
    )


def test_a_label_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match=r"^--label a is given twice; give each label a name of its own\.$"):
        parse_labels(["a=b = 1", "a=b = 2"], ["b"])


@settings(deadline=None)
@given(st.text(min_size=1, max_size=12))
def test_a_column_of_any_name_is_written_as_an_expression(name: str) -> None:
    if "\0" not in name and not any(0xD800 <= ord(each) < 0xE000 for each in name):
        assert parse_expression(column_text(name)) == Column(name)


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8), min_size=1, max_size=4), st.text())
def test_any_names_and_comments_come_back_from_yaml(values: dict[str, str], comment: str) -> None:
    section = lines(values, dict.fromkeys(values, comment))
    text = text_of({"features": section}, head=[comment], above={"features": comment}, foot=[comment])
    assert parse_yaml(text) == {"features": values}
    assert printable(comment).isprintable()


def test_feature_names_are_words() -> None:
    assert [feature_name(name) for name in ("a-b c", "größe", "***")] == ["a_b_c", "größe", "column"]


def test_a_column_far_above_all_others_is_named() -> None:
    scores = {"click": dict(zip("abcd", (0.99, 0.90, 0.62, np.float64(0.6)), strict=True))}
    leaks, suspects = leaks_and_suspects(scores)
    assert leaks == {"a": "alone has an AUC of 0.990 for click"}
    assert suspects == {"b": "alone has an AUC of 0.900 for click"}
    # One of two columns that are alike is no suspect, and neither is the user.
    assert leaks_and_suspects({"click": {"a": 0.84, "b": 0.83}}) == ({}, {})
    assert leaks_and_suspects({"click": {"user": 0.90, "a": 0.62, "b": 0.6, "c": 0.5}}, ["user"]) == ({}, {})
