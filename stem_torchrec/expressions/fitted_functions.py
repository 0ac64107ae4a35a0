"""Transforms with constants that fitting found: buckets, quantiles, clipping, standardizing, and two ways to an id."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.expressions import engine_functions
from stem_torchrec.expressions.arrow_arrays import is_null, numpy_of, with_nulls
from stem_torchrec.expressions.casts import int_to_text
from stem_torchrec.expressions.engine_functions import constant
from stem_torchrec.expressions.function import (
    ANY_NUMBER,
    ANY_TEXT,
    EDGES,
    NOT_NEGATIVE,
    NUMBERS,
    POSITIVE,
    POSITIVE_NUMBER,
    WHOLE,
    Engine,
    Function,
    Resolved,
    TypeMismatch,
    fixed,
    one_of,
    words,
)
from stem_torchrec.expressions.value_types import FLOAT, INT, INTS, NULL, TEXT, TEXTS, ValueType

Edges = Sequence[int | float]

HASH_DIGITS = 13
"""Hexadecimal digits of md5 that make an id before the modulo: 52 bits."""


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


def _hash_in_engine(engine: Engine, value: ibis.Value, buckets: int, salt: str) -> ibis.Value:
    def of_scalar(scalar: ibis.Value) -> ibis.Value:
        text = ibis.literal(salt) + (scalar.cast("string") if scalar.type().is_integer() else scalar)
        digits = engine_functions.substring(text.hexdigest("md5"), 1, HASH_DIGITS)
        return engine_functions.number_of_hex(engine, digits) % constant(buckets)

    return value.map(of_scalar) if value.type().is_array() else of_scalar(value)


def hash_id(text: str, buckets: int, salt: str) -> int:
    """The id of a text, or of an int by its decimal digits.

    Example::

        hash_id("shoes", buckets=1000, salt="")  # 4
    """
    return int(hashlib.md5((salt + text).encode()).hexdigest()[:HASH_DIGITS], 16) % buckets


def _hash_in_arrow(values: pa.Array, buckets: int, salt: str) -> pa.Array:
    def of_scalars(scalars: pa.Array) -> pa.Array:
        texts = int_to_text(scalars) if scalars.type == pa.int64() else scalars
        # Each distinct value is hashed once: md5 in Python takes about a microsecond.
        encoded = texts.dictionary_encode()
        ids = [hash_id(text, buckets, salt) for text in encoded.dictionary.to_pylist()]
        return pa.array(ids, pa.int64()).take(encoded.indices)

    return _each(values, of_scalars)


def _each(values: pa.Array, kernel: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """The kernel of scalars for an array, or for the elements of its lists, none of which it makes null."""
    if not pa.types.is_list(values.type):
        return kernel(values)
    mask = pc.is_null(values) if values.null_count else None
    flat = values.flatten()
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), kernel(flat), mask=mask)


def vocabulary_ids(values: pa.Array, vocabulary: pa.Array, first_id: int, null_id: int | None) -> pa.Array:
    """The position of each value in a vocabulary plus the first id; 0 for a value that is not in it.

    Args:
        values: ints or texts, or lists of them.
        vocabulary: distinct values, without nulls, in the order of their ids.
        first_id: the id of the first value.
        null_id: what a null gets; None leaves it null. A null list always stays null.
    """

    def of_scalars(scalars: pa.Array) -> pa.Array:
        positions = pc.cast(pc.index_in(scalars, vocabulary.cast(scalars.type)), pa.int64())
        ids = pc.fill_null(pc.add(positions, first_id), 0)
        null = pa.scalar(null_id, pa.int64())
        return pc.if_else(pc.is_null(scalars), null, ids) if scalars.null_count else ids

    return _each(values, of_scalars)


def _engines_join(*_: Any, **__: Any) -> ibis.Value:
    raise AssertionError("an engine joins a vocabulary instead")


_ID_KINDS = {INT: INT, TEXT: INT, INTS: INTS, TEXTS: INTS}

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
    Function(
        "hash_id",
        "hash_id(a, buckets, salt)",
        "The first 13 hexadecimal digits of md5 of the salt and the value, modulo the number of buckets.",
        one_of(_ID_KINDS),
        _hash_in_engine,
        _hash_in_arrow,
        parameters={"buckets": POSITIVE, "salt": ANY_TEXT},
        fitted=True,
    ),
    Function(
        "vocabulary",
        "vocabulary(a, name, first_id, null_id)",
        "The id of a value: its place in a vocabulary plus the first id, and 0 if it is not in it; a null gets the"
        " null's id, or stays null if that is below 0.",
        one_of(_ID_KINDS),
        _engines_join,
        _engines_join,
        parameters={
            "name": ANY_TEXT,
            "first_id": NOT_NEGATIVE,
            "null_id": WHOLE,
        },
        fitted=True,
    ),
)
