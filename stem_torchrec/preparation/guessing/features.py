"""The rules by which a column becomes a feature, a dense feature or nothing; each gives its reason.

A number becomes a dense feature, which keeps the order of its values, and a feature of buckets, from which a model
learns what is no line: on Adult the buckets add 0.018 and 0.009 to the AUC (benchmarks/results/settings).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stem_torchrec.expressions.value_types import LISTS, ValueType
from stem_torchrec.preparation.guessing.column_names import (
    feature_name,
    names_category,
    names_feedback,
    names_id,
    names_quantity,
    names_result,
    user_rank,
    words_of,
)
from stem_torchrec.preparation.guessing.facts import Facts, Separated
from stem_torchrec.preparation.guessing.labels import column_text
from stem_torchrec.preparation.guessing.times import TimeColumn, time_column

_T = ValueType
FEW_VALUES = 50
"""Whole numbers with at most so many values are told apart, not measured."""
FEW_QUANTITIES = 20
"""The same where the name is one of what is measured."""
_DENSE_IDS = 1000
"""Whole numbers with more values than this, of which at least half up to the greatest occur, are ids."""
_LONG_TEXT = 60
"""Mean characters from which on a text is prose."""
_SKEWED = 3.0
"""How many times its median a mean is at least where the logarithm is taken."""
_DAYS_OF_WEEKDAYS = 14
"""Days that a log must have for a weekday to occur twice."""
_BUCKETS = 30
"""Buckets of a number, with equally many rows."""
_FLAG = 0.01
"""Share of missing numbers from which on a flag tells them."""


@dataclass(frozen=True)
class Known:
    """What has been decided before the features are."""

    label_columns: Mapping[str, str]
    """Columns from which labels are made, with the labels."""
    dropped: frozenset[str] = frozenset()
    leaks: Mapping[str, str] = field(default_factory=dict)
    suspects: Mapping[str, str] = field(default_factory=dict)
    time: TimeColumn | None = None
    """The time of a row."""
    days: int = 0
    """Days of the log; 0 if unknown."""
    split_by: str | None = None
    """The column of the split."""
    group: str | None = None


@dataclass(frozen=True)
class Choice:
    """A feature, a dense feature, or a column that is left out, and why."""

    kind: str
    """`features`, `dense` or `left out`."""
    name: str
    reason: str
    content: dict[str, Any] | None = None
    """The fields of the feature; None for the defaults."""


def choose(facts: Facts, known: Known) -> list[Choice]:
    """What becomes of a column."""
    reason = _reason_to_leave_out(facts, known)
    if reason is not None:
        return [Choice("left out", facts.name, reason)]
    time = time_column(facts)
    if time is not None:
        return _of_time(time, known)
    if facts.type in (_T.TEXT, _T.BOOL) or facts.type in LISTS:
        return [_of_values(facts, known)]
    return _of_number(facts, known)


def is_used(facts: Facts, known: Known) -> bool:
    """Whether a column becomes a feature of some kind."""
    return any(choice.kind != "left out" for choice in choose(facts, known))


def _reason_to_leave_out(facts: Facts, known: Known) -> str | None:
    """Why a column can be no feature, if it cannot; the first reason that holds."""
    name = facts.name
    if name in known.label_columns:
        return f"labels are made from it: {known.label_columns[name]}"
    if name in known.dropped:
        return "--drop names it"
    if not facts.values:
        return "no row has a value"
    if facts.distinct == 1 and not facts.missing:
        return "all rows have the same value"
    if names_result(name) or (facts.is_binary and names_feedback(name)):
        return "named like feedback, which is not known before the exposure"
    if name in known.leaks:
        return f"looks like a leak: it {known.leaks[name]}"
    if time_column(facts) is not None or name == known.group:
        return None
    if name == known.split_by:
        return "it names the split"
    if facts.is_unique and facts.type == _T.TEXT:
        return "looks like a row id: each row has a value of its own"
    if facts.is_unique and facts.type == _T.INT and (facts.rises or not names_quantity(name)):
        return "looks like a row id: each row has a number of its own"
    if (
        facts.type == _T.TEXT
        and facts.lists is None
        and facts.length > _LONG_TEXT
        and facts.distinct > facts.values / 2
    ):
        return f"prose: {facts.length:.0f} characters on average, and most texts occur once"
    if facts.type == _T.FLOATS:
        return "lists of floats are no ids"
    return None


def _of_time(time: TimeColumn, known: Known) -> list[Choice]:
    name = time.name
    if time.is_day and name == known.split_by:
        return [Choice("left out", name, "the day of the split: later days have values that train lacks")]
    if known.time is None:
        return [Choice("left out", name, "a time, but none by which the log could be cut")]
    if time.is_day or name != known.time.name:
        return [Choice("left out", name, f"a time besides {known.time.name}")]
    moment = time.moment(column_text(name))
    zone = f"hour in UTC; for another zone hour({moment}, 'Asia/Shanghai')"
    choices = [Choice("features", _free("hour", name), zone, {"value": f"hour({moment})"})]
    if known.days >= _DAYS_OF_WEEKDAYS:
        reason = f"0 for Monday; the log has {known.days} days"
        return [*choices, Choice("features", _free("weekday", name), reason, {"value": f"weekday({moment})"})]
    return [*choices, Choice("left out", f"weekday of {name}", f"{known.days} days are too few to learn weekdays from")]


def _free(part: str, column: str) -> str:
    return part if part != column else f"{column}_{part}"


def _of_values(facts: Facts, known: Known) -> Choice:
    """Texts, booleans and lists: a vocabulary."""
    content: dict[str, Any] = {}
    if facts.lists is not None:
        content = {"value": list_text(column_text(facts.name), facts.lists), "pooling": "mean"}
        of = "whole numbers" if facts.lists.of_ints else "texts"
        return _feature(facts, known, f"lists of {of} between {facts.lists.separator!r}", content, missing="none")
    if facts.type in LISTS:
        return _feature(facts, known, "a list", {"pooling": "mean"}, missing="none")
    return _feature(facts, known, "the user" if facts.name == known.group else str(facts.type), content)


def list_text(column: str, lists: Separated) -> str:
    """The expression for the list that a text holds.

    Example::

        list_text("tags", Separated("|", of_ints=False, brackets=False))  # "split(tags, '|')"
    """
    if lists.brackets:
        for sign in ("[", "]", " ", *(() if lists.of_ints else ("''", '"'))):
            column = f"replace({column}, '{sign}', '')"
    text = f"split({column}, '{lists.separator}')"
    return f"ints({text})" if lists.of_ints else text


def _of_number(facts: Facts, known: Known) -> list[Choice]:
    if facts.type == _T.INT:
        reason = _reason_for_ids(facts, known)
        if reason is not None:
            return [_feature(facts, known, reason, {})]
    return [_dense(facts, known), _bucketed(facts, known)]


def _reason_for_ids(facts: Facts, known: Known) -> str | None:
    """Why whole numbers are told apart, if they are."""
    name = facts.name
    if name == known.group or user_rank(name) is not None:
        return "the user"
    if names_id(name):
        return "named like an id"
    few = FEW_QUANTITIES if names_quantity(name) else FEW_VALUES
    if facts.distinct <= few:
        return f"at most {few} different whole numbers"
    if names_category(name):
        return "named like a category"
    span = facts.greatest - facts.least + 1
    if facts.distinct > _DENSE_IDS and facts.distinct >= span / 2 and facts.least >= -1 and not names_quantity(name):
        return "half of all numbers up to the greatest occur, so ids; a quantity belongs to dense"
    return None


def _feature(facts: Facts, known: Known, reason: str, content: dict[str, Any], missing: str = "own") -> Choice:
    name = feature_name(facts.name)
    if name != facts.name and "value" not in content:
        content = {"value": column_text(facts.name), **content}
    if facts.missing:
        content = {**content, "missing": missing}
    if facts.is_binary and words_of(facts.name)[:1] in (["col"], ["is"]):
        reason += "; 0 or 1: no feature if the exposure produces it"
    return Choice("features", name, _with_suspicion(f"{reason}, {facts.text}", facts, known), content or None)


def _dense(facts: Facts, known: Known) -> Choice:
    name = feature_name(facts.name)
    content: dict[str, Any] = {"value": column_text(facts.name)} if name != facts.name else {}
    skewed = facts.least >= 0 and facts.mean >= _SKEWED * max(facts.median, 0.0) and facts.greatest > 10
    spread = facts.least >= 0 and facts.greatest > 100 * max(facts.median, 1.0)
    if skewed or spread:
        content["log"] = True
    content["standardize"] = True
    if facts.missing >= _FLAG * facts.rows:
        content["missing"] = {"fill": "mean", "flag": True}
    why = "a number; log, as the greatest are far above the median" if "log" in content else "a number"
    return Choice("dense", name, _with_suspicion(f"{why}, {facts.text}", facts, known), content)


def _bucketed(facts: Facts, known: Known) -> Choice:
    column, reason = column_text(facts.name), f"{facts.name} in buckets"
    content: dict[str, Any] = {"value": column, "buckets": {"quantiles": _BUCKETS}}
    if facts.least == facts.median:
        # The least value fills half of the quantiles or more, and would leave few buckets for the others.
        content["value"] = f"nullif({column}, {facts.least})"
        reason += f", {facts.least} in one of its own, as half of the rows or more have it"
    if facts.missing or facts.least == facts.median:
        content["missing"] = "own"
    return Choice("features", f"{feature_name(facts.name)}_bucket", _with_suspicion(reason, facts, known), content)


def _with_suspicion(reason: str, facts: Facts, known: Known) -> str:
    words = known.suspects.get(facts.name)
    return reason if words is None else f"CHECK whether it is known before: it {words}; {reason}"
