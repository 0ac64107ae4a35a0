"""Transforms with constants that fitting found: buckets, quantiles, clipping and standardizing."""

from collections.abc import Mapping, Sequence
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.expressions import engine_functions
from stem_torchrec.expressions.arrow_arrays import is_null, numpy_of, with_nulls
from stem_torchrec.expressions.engine_functions import constant
from stem_torchrec.expressions.function import (
    ANY_NUMBER,
    EDGES,
    NUMBERS,
    POSITIVE_NUMBER,
    Engine,
    Function,
    Resolved,
    TypeMismatch,
    fixed,
    words,
)
from stem_torchrec.expressions.value_types import FLOAT, INT, NULL, ValueType

Edges = Sequence[int | float]


def _bucket_signature(kinds: Sequence[ValueType], parameters: Mapping[str, Any]) -> Resolved:
    if len(kinds) != 1 or kinds[0] not in (*NUMBERS, NULL):
        raise TypeMismatch(0 if len(kinds) == 1 else -1, words(NUMBERS))
    whole = kinds[0] != FLOAT and all(isinstance(edge, int) for edge in parameters["edges"])
    kind = INT if whole else FLOAT
    return Resolved((kind,), kind)


def _bucket_in_engine(_: Engine, value: ibis.Value, edges: Edges) -> ibis.Value:
    kind = int if value.type().is_integer() else float
    bucket = engine_functions.choose(value, edges, [constant(kind(edge)) for edge in edges])
    return ibis.cases((value.notnull(), bucket), else_=ibis.null(value.type()))


def _bucket_in_arrow(values: pa.Array, edges: Edges) -> pa.Array:
    numbers = numpy_of(values)
    sorted_edges = np.asarray(edges, dtype=numbers.dtype)
    index = np.maximum(np.searchsorted(sorted_edges, numbers, side="right") - 1, 0)
    return with_nulls(sorted_edges[index], is_null(values))


def _pieces(edges: Edges) -> tuple[list[float], list[float], list[float]]:
    """Where each linear piece starts, its height at the start and its slope; the last one is flat."""
    distinct = sorted(set(map(float, edges)))
    last = max(len(edges) - 1, 1)
    numbers = np.asarray(edges, dtype=np.float64)
    # A value that is several quantiles gets the middle of them.
    heights = [
        float(np.searchsorted(numbers, x, "left") + np.searchsorted(numbers, x, "right") - 1) / 2 / last
        for x in distinct
    ]
    rises = zip(heights, heights[1:], distinct, distinct[1:], strict=False)
    return distinct, heights, [*((top - bottom) / (end - start) for bottom, top, start, end in rises), 0.0]


def _interpolate_in_engine(_: Engine, value: ibis.Value, edges: Edges) -> ibis.Value:
    starts, heights, slopes = _pieces(edges)
    lines = [
        constant(height) + (value - constant(start)) * constant(slope)
        for start, height, slope in zip(starts[:-1], heights, slopes, strict=False)
    ]
    quantile = engine_functions.choose(
        value, [starts[0], *starts], [constant(heights[0]), *lines, constant(heights[-1])]
    )
    return ibis.cases((value.notnull(), quantile), else_=ibis.null("float64"))


def _interpolate_in_arrow(values: pa.Array, edges: Edges) -> pa.Array:
    starts, heights, slopes = map(np.asarray, _pieces(edges))
    numbers = numpy_of(values)
    index = np.maximum(np.searchsorted(starts, numbers, side="right") - 1, 0)
    inside = np.minimum(np.maximum(numbers, starts[0]), starts[-1])
    return with_nulls(heights[index] + (inside - starts[index]) * slopes[index], is_null(values))


def _clip_in_engine(_: Engine, value: ibis.Value, low: float, high: float) -> ibis.Value:
    # Not by `least` and `greatest`, which ignore nulls.
    return ibis.cases(
        (value < constant(float(low)), constant(float(low))),
        (value > constant(float(high)), constant(float(high))),
        else_=value,
    )


def _clip_in_arrow(values: pa.Array, low: float, high: float) -> pa.Array:
    return pc.if_else(
        pc.less(values, float(low)), float(low), pc.if_else(pc.greater(values, float(high)), float(high), values)
    )


FITTED_FUNCTIONS = (
    Function(
        "bucket",
        "bucket(a, edges)",
        "The greatest edge that is not above the value, or the first edge.",
        _bucket_signature,
        _bucket_in_engine,
        _bucket_in_arrow,
        parameters={"edges": EDGES},
        fitted=True,
    ),
    Function(
        "interpolate",
        "interpolate(a, edges)",
        "The quantile of a value, from 0 to 1: the edges are quantiles at equal distances, with lines between them; a"
        " value that is several edges has the middle of their quantiles.",
        fixed(FLOAT, result=FLOAT),
        _interpolate_in_engine,
        _interpolate_in_arrow,
        parameters={"edges": EDGES},
        fitted=True,
    ),
    Function(
        "clip",
        "clip(a, low, high)",
        "The value, or the nearer of two limits outside of them, as a float.",
        fixed(FLOAT, result=FLOAT),
        _clip_in_engine,
        _clip_in_arrow,
        parameters={"low": ANY_NUMBER, "high": ANY_NUMBER},
        fitted=True,
    ),
    Function(
        "standardize",
        "standardize(a, mean, deviation)",
        "(a - mean) / deviation.",
        fixed(FLOAT, result=FLOAT),
        lambda engine, a, mean, deviation: (a - constant(float(mean))) / constant(float(deviation)),
        lambda a, mean, deviation: pc.divide(pc.subtract(a, float(mean)), float(deviation)),
        parameters={"mean": ANY_NUMBER, "deviation": POSITIVE_NUMBER},
        unbounded=True,
        fitted=True,
    ),
)
