"""What DuckDB and Spark spell differently: each function here returns the same values on both.

Ibis passes the names of `_builtin` through to the engine. DuckDB's TRY turns the errors of an operation into null;
Spark has functions of their own for that.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import ibis

from stem_torchrec.expressions.function import Engine


def _builtin(name: str, arguments: str, result: str) -> Callable[..., Any]:
    """A function of an engine, from and to types of Ibis."""
    kinds = arguments.split(", ")

    def call(*values: Any) -> Any: ...

    call.__name__ = name
    names = [f"value_{i}" for i in range(len(kinds))]
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(each, inspect.Parameter.POSITIONAL_OR_KEYWORD) for each in names]
    )
    return ibis.udf.scalar.builtin(call, name=name, signature=(tuple(kinds), result))


_null_on_error = _builtin("try", "int64", "int64")
_duckdb_quotient = _builtin("divide", "int64, int64", "int64")
_spark_quotient = _builtin("div", "int64, int64", "int64")
_spark_add = _builtin("try_add", "int64, int64", "int64")
_spark_subtract = _builtin("try_subtract", "int64, int64", "int64")
_spark_multiply = _builtin("try_multiply", "int64, int64", "int64")
_spark_convert = _builtin("conv", "string, int64, int64", "string")
_substring = _builtin("substring", "string, int64, int64", "string")
_duckdb_stop = _builtin("error", "string", "string")
_spark_stop = _builtin("raise_error", "string", "string")
_duckdb_micros = _builtin("epoch_us", "timestamp", "int64")
_spark_micros = _builtin("unix_micros", "timestamp('UTC')", "int64")
_duckdb_date = _builtin("make_date", "int32", "date")
_spark_date = _builtin("date_from_unix_date", "int32", "date")


def constant(value: int | float) -> ibis.Value:
    """A number as int64 or float64; the text of a float is exact, which a decimal literal of DuckDB is not."""
    return ibis.literal(repr(value)).cast("float64" if isinstance(value, float) else "int64")


def add(engine: Engine, a: ibis.Value, b: ibis.Value) -> ibis.Value:
    """The sum of whole numbers; null where it leaves 64 bits."""
    return _spark_add(a, b) if engine == "spark" else _null_on_error(a + b)


def subtract(engine: Engine, a: ibis.Value, b: ibis.Value) -> ibis.Value:
    """The difference of whole numbers; null where it leaves 64 bits."""
    return _spark_subtract(a, b) if engine == "spark" else _null_on_error(a - b)


def multiply(engine: Engine, a: ibis.Value, b: ibis.Value) -> ibis.Value:
    """The product of whole numbers; null where it leaves 64 bits."""
    return _spark_multiply(a, b) if engine == "spark" else _null_on_error(a * b)


def quotient(engine: Engine, a: ibis.Value, b: ibis.Value) -> ibis.Value:
    """The quotient of whole numbers towards 0; null where the divisor is 0 or the quotient leaves 64 bits."""
    if engine == "duckdb":
        # TRY computes row by row from the first error on, so that divisors of 0 would take their time.
        return _null_on_error(_duckdb_quotient(a, b.nullif(0)))
    # With -1 only the least number leaves 64 bits, which is an error or wraps around, by Spark's settings.
    return ibis.cases((b == -1, _spark_subtract(constant(0), a)), else_=_spark_quotient(a, b.nullif(0)))


def quotient_by(engine: Engine, a: ibis.Value, divisor: int) -> ibis.Value:
    """The quotient towards 0 by a divisor above 0."""
    return _duckdb_quotient(a, constant(divisor)) if engine == "duckdb" else _spark_quotient(a, constant(divisor))


def rounded(name: str, value: ibis.Value) -> ibis.Value:
    """`floor`, `ceil` or `round` of a float as an int; engines differ for floats beyond 64 bits."""
    return _builtin(name, "float64", "float64")(value).try_cast("int64")


def substring(value: ibis.Value, start: int, count: int) -> ibis.Value:
    """Characters from the given one on, counted from 1."""
    return _substring(value, start, count)


def number_of_hex(engine: Engine, digits: ibis.Value) -> ibis.Value:
    """The number that at most 15 hexadecimal digits write."""
    if engine == "duckdb":
        return (ibis.literal("0x") + digits).cast("int64")
    return _spark_convert(digits, 16, 10).cast("int64")


def microseconds(engine: Engine, value: ibis.Value) -> ibis.Value:
    """Microseconds since 1970 of a timestamp; one without a zone is in UTC, if Spark's session is."""
    if engine == "duckdb":
        return _duckdb_micros(value)
    return _spark_micros(value if value.type().timezone else value.cast("timestamp('UTC')"))


def date_of_days(engine: Engine, days: ibis.Value) -> ibis.Value:
    """The date that is a number of days after 1970-01-01."""
    return _duckdb_date(days.cast("int32")) if engine == "duckdb" else _spark_date(days.cast("int32"))


def split(engine: Engine, value: ibis.Value, separator: str) -> ibis.Value:
    """The parts of a text; Spark reads a separator as a regular expression."""
    if engine == "duckdb":
        return value.split(separator)
    quoted = separator.replace("\\E", "\\E\\\\E\\Q")
    return value.re_split(f"\\Q{quoted}\\E")


def element(engine: Engine, values: ibis.Value, index: int) -> ibis.Value:
    """The element at an index from 1, or from the end if below 0; null if the list is shorter."""
    kind = str(values.type().value_type)
    name = "list_extract" if engine == "duckdb" else "try_element_at"
    position = ibis.literal(index, "int64" if engine == "duckdb" else "int32")
    return _builtin(name, f"array<{kind}>, {position.type()}", kind)(values, position)


def size(values: ibis.Value) -> ibis.Value:
    """The number of elements; Spark's own is -1 for null without its ANSI mode."""
    return ibis.cases((values.notnull(), values.length().cast("int64")), else_=ibis.null("int64"))


def sublist(engine: Engine, values: ibis.Value, start: ibis.Value, count: int) -> ibis.Value:
    """At most so many elements, from an index from 1 on."""
    kind = str(values.type())
    if engine == "duckdb":
        return _builtin("list_slice", f"{kind}, int64, int64", kind)(values, start, start + (count - 1))
    return _builtin("slice", f"{kind}, int32, int32", kind)(values, start.cast("int32"), ibis.literal(count, "int32"))


def choose(value: ibis.Value, edges: Sequence[int | float], branches: Sequence[ibis.Value]) -> ibis.Value:
    """The branch of the last edge that is not above a value, or the first branch; `branches` has one for each edge.

    Nested comparisons, so that a row is compared with about log2(n) of n edges. The value must not be null.
    """
    if len(branches) == 1:
        return branches[0]
    middle = len(branches) // 2
    return ibis.cases(
        (value < constant(edges[middle]), choose(value, edges[:middle], branches[:middle])),
        else_=choose(value, edges[middle:], branches[middle:]),
    )


def stop(engine: Engine, text: ibis.Value) -> ibis.Value:
    """Ends the query with a text, in the first row in which it is computed; has the type of texts."""
    return _duckdb_stop(text) if engine == "duckdb" else _spark_stop(text)
