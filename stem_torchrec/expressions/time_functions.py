"""Functions of timestamps and dates, which are microseconds and days since 1970; all of them are arithmetic of ints."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.expressions import engine_functions
from stem_torchrec.expressions.arrow_arrays import Ints, is_null, numpy_of, where, with_nulls
from stem_torchrec.expressions.engine_functions import constant
from stem_torchrec.expressions.function import ANY_TEXT, EDGES, Engine, Function, ParameterKind, Resolved, fixed
from stem_torchrec.expressions.value_types import DATE, INT, TEXT, TIMESTAMP, ValueType
from stem_torchrec.runtime.errors import UserError

DAY = 86_400_000_000
_HOUR, _MINUTE = 3_600_000_000, 60_000_000
FIRST_DAY, LAST_DAY = -719_162, 2_932_896
"""0001-01-01 and 9999-12-31."""
_SHIFT = 865_625
"""Days that make all days of these years, and the day before them, positive: quotients then cut off alike."""
_DATE_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}\z"
_OFFSETS = ParameterKind(
    "a list of whole numbers", lambda value: isinstance(value, tuple) and all(isinstance(each, int) for each in value)
)
ZONED = ("hour", "minute", "weekday", "day", "month", "year", "days", "date_number")
"""Functions of a timestamp that take a time zone in SQL."""


def years_in_engine(value: ibis.Value, per_day: int = DAY) -> ibis.Value:
    """Null outside of the years 1 to 9999, for a count of units of which a day has so many."""
    inside = (value >= constant(FIRST_DAY * per_day)) & (value < constant((LAST_DAY + 1) * per_day))
    return ibis.cases((inside, value), else_=ibis.null("int64"))


def years_in_arrow(values: pa.Array, per_day: int = DAY) -> pa.Array:
    """Null outside of the years 1 to 9999, for counts of units of which a day has so many."""
    first, end = FIRST_DAY * per_day, (LAST_DAY + 1) * per_day
    return where(pc.and_(pc.greater_equal(values, first), pc.less(values, end)), values)


def _from_unix(unit: str, per_day: int) -> Function:
    factor = DAY // per_day
    return Function(
        f"from_unix_{unit}",
        f"from_unix_{unit}(a)",
        f"The timestamp that an int counts in {unit} since 1970 in UTC; null outside of the years 1 to 9999.",
        fixed(INT, result=TIMESTAMP),
        lambda engine, value: years_in_engine(value, per_day) * constant(factor),
        lambda values: pc.multiply(years_in_arrow(values, per_day), factor),
    )


def _of_ints(kernel: Callable[[Ints], Any]) -> Callable[[pa.Array], pa.Array]:
    """A kernel of whole numbers as one of arrays with nulls."""
    return lambda values: with_nulls(
        np.asarray(kernel(np.asarray(numpy_of(values), dtype=np.int64)), dtype=np.int64), is_null(values)
    )


def _shifted_days(engine: Engine, value: ibis.Value) -> ibis.Value:
    return engine_functions.quotient_by(engine, value + constant(_SHIFT * DAY), DAY)


def _part_of_day(unit: int, whole: int) -> tuple[Callable[..., ibis.Value], Callable[..., pa.Array]]:
    """How often a unit went into what is left of a larger one."""

    def relational(engine: Engine, value: ibis.Value) -> ibis.Value:
        return engine_functions.quotient_by(engine, (value + constant(_SHIFT * DAY)) % constant(whole), unit)

    return relational, _of_ints(lambda values: values % whole // unit)


def _part_of_date(part: str) -> tuple[Callable[..., ibis.Value], Callable[..., pa.Array]]:
    """`year`, `month` or `day` of the date."""

    def relational(engine: Engine, value: ibis.Value) -> ibis.Value:
        date = engine_functions.date_of_days(engine, _shifted_days(engine, value) - constant(_SHIFT))
        return getattr(date, part)().cast("int64")

    def arrow(values: pa.Array) -> pa.Array:
        days = _of_ints(lambda numbers: numbers // DAY)(values)
        return getattr(pc, part)(pc.cast(pc.cast(days, pa.int32()), pa.date32()))

    return relational, arrow


_YEAR, _MONTH, _DAY_OF_MONTH = map(_part_of_date, ("year", "month", "day"))


def _date_number_in_engine(engine: Engine, value: ibis.Value) -> ibis.Value:
    year, month, day = (part[0](engine, value) for part in (_YEAR, _MONTH, _DAY_OF_MONTH))
    return year * constant(10_000) + month * constant(100) + day


def _date_number_in_arrow(values: pa.Array) -> pa.Array:
    year, month, day = (part[1](values) for part in (_YEAR, _MONTH, _DAY_OF_MONTH))
    return pc.add(pc.add(pc.multiply(year, 10_000), pc.multiply(month, 100)), day)


def _days_in_engine(engine: Engine, value: ibis.Value) -> ibis.Value:
    return _shifted_days(engine, value) - constant(_SHIFT)


def _weekday_in_engine(engine: Engine, value: ibis.Value) -> ibis.Value:
    # The day at which `_SHIFT` starts is a Saturday.
    return (_shifted_days(engine, value) + constant(5)) % constant(7)


def _in_zone_signature(kinds: Sequence[ValueType], parameters: Mapping[str, Any]) -> Resolved:
    edges, offsets = len(parameters["edges"]), len(parameters["offsets"])
    if edges != offsets:
        raise UserError(f"in_zone has {edges} edges, but {offsets} offsets.")
    return fixed(TIMESTAMP, result=TIMESTAMP)(kinds, parameters)


def _in_zone_in_engine(
    _: Engine, value: ibis.Value, zone: str, edges: Sequence[int], offsets: Sequence[int]
) -> ibis.Value:
    local = engine_functions.choose(value, edges, [constant(offset) for offset in offsets])
    return ibis.cases((value.notnull(), value + local), else_=ibis.null("int64"))


def _in_zone_in_arrow(values: pa.Array, zone: str, edges: Sequence[int], offsets: Sequence[int]) -> pa.Array:
    changes = np.asarray(edges, dtype=np.int64)

    def local(numbers: Ints) -> Ints:
        index = np.maximum(np.searchsorted(changes, numbers, side="right") - 1, 0)
        return numbers + np.asarray(offsets, dtype=np.int64)[index]

    return _of_ints(local)(values)


def _date_in_engine(_: Engine, text: ibis.Value) -> ibis.Value:
    days = text.try_cast("date").delta(ibis.date("1970-01-01"), unit="day").cast("int64")
    return ibis.cases((text.re_search(_DATE_PATTERN) & (text >= "0001"), days), else_=ibis.null("int64"))


def _date_in_arrow(text: pa.Array) -> pa.Array:
    text = where(pc.match_substring_regex(text, _DATE_PATTERN), text)
    parts = [pc.cast(pc.utf8_slice_codeunits(text, start, end), pa.int64()) for start, end in ((0, 4), (5, 7), (8, 10))]
    year, month, day = (np.asarray(numpy_of(part), dtype=np.int64) for part in parts)
    valid = (year >= 1) & (month >= 1) & (month <= 12) & (day >= 1)
    months = ((np.where(valid, year, 1970) - 1970) * 12 + np.where(valid, month, 1) - 1).astype("datetime64[M]")
    firsts, ends = (each.astype("datetime64[D]").astype(np.int64) for each in (months, months + 1))
    return with_nulls(firsts + day - 1, is_null(text) | ~valid | (firsts + day > ends))


def _field(name: str, summary: str, relational: Callable[..., ibis.Value], arrow: Callable[..., pa.Array]) -> Function:
    usage = f"{name}(time), {name}(time, 'Asia/Shanghai')"
    return Function(name, usage, summary, fixed(TIMESTAMP, result=INT), relational, arrow)


TIME_FUNCTIONS = (
    _from_unix("s", 86_400),
    _from_unix("ms", 86_400_000),
    _from_unix("us", DAY),
    Function(
        "in_zone",
        "in_zone(time, 'Asia/Shanghai')",
        "The time that clocks show in a time zone, by its changes from 1970 to 2099.",
        _in_zone_signature,
        _in_zone_in_engine,
        _in_zone_in_arrow,
        parameters={
            "zone": ANY_TEXT,
            "edges": EDGES,
            "offsets": _OFFSETS,
        },
    ),
    Function(
        "to_date",
        "to_date(text)",
        "The date that a text writes as 2022-05-03; null for all other texts.",
        fixed(TEXT, result=DATE),
        _date_in_engine,
        _date_in_arrow,
    ),
    _field("hour", "The hour of the day, from 0 to 23.", *_part_of_day(_HOUR, DAY)),
    _field("minute", "The minute of the hour, from 0 to 59.", *_part_of_day(_MINUTE, _HOUR)),
    _field(
        "weekday", "0 for Monday to 6 for Sunday.", _weekday_in_engine, _of_ints(lambda values: (values // DAY + 3) % 7)
    ),
    _field("day", "The day of the month, from 1.", *_DAY_OF_MONTH),
    _field("month", "The month, from 1.", *_MONTH),
    _field("year", "The year.", *_YEAR),
    _field("days", "Days since 1970-01-01.", _days_in_engine, _of_ints(lambda values: values // DAY)),
    _field("date_number", "The date as an int, such as 20220503.", _date_number_in_engine, _date_number_in_arrow),
)
