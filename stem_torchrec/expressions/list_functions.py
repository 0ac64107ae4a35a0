"""Functions of lists. A list has no null elements: what is null or cannot be read is left out."""

from collections.abc import Callable
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.expressions import casts, engine_functions
from stem_torchrec.expressions.arrow_arrays import is_null, lengths_of, lists_of, map_elements
from stem_torchrec.expressions.engine_functions import constant
from stem_torchrec.expressions.function import FULL_TEXT, NOT_ZERO, POSITIVE, Engine, Function, fixed, one_of
from stem_torchrec.expressions.value_types import FLOAT, FLOATS, INT, INTS, LISTS, TEXT, TEXTS

FINITE = 1.7976931348623157e308
"""The greatest float."""


def finite_in_engine(value: ibis.Value) -> ibis.Value:
    """A float, or null for NaN and infinity; both engines take NaN for greater than all floats."""
    inside = value.between(constant(-FINITE), constant(FINITE))
    return ibis.cases((inside, value), else_=ibis.null("float64"))


def _split_in_engine(engine: Engine, text: ibis.Value, separator: str) -> ibis.Value:
    empty = ibis.literal([], "array<string>")
    return ibis.cases(
        (text == "", empty), (text.notnull(), engine_functions.split(engine, text, separator)), else_=_no_texts()
    )


def _no_texts() -> ibis.Value:
    return ibis.null("array<string>")


def _split_in_arrow(text: pa.Array, separator: str) -> pa.Array:
    lists = pc.split_pattern(text, separator)
    empty = pc.fill_null(pc.equal(text, ""), False).to_numpy(zero_copy_only=False)
    if not empty.any():
        return lists
    lengths = lengths_of(lists)
    kept = np.repeat(~empty, lengths)
    return lists_of(np.where(empty, 0, lengths), lists.flatten().filter(pa.array(kept)), is_null(text))


def _numbers_in_engine(element: Callable[[ibis.Value], ibis.Value]) -> Callable[..., ibis.Value]:
    def relational(_: Engine, lists: ibis.Value) -> ibis.Value:
        return lists.map(element).filter(lambda value: value.notnull())

    return relational


def _ints_in_engine(engine: Engine, lists: ibis.Value) -> ibis.Value:
    return lists if lists.type().value_type.is_integer() else _numbers_in_engine(casts.int_of_text)(engine, lists)


def _ints_in_arrow(lists: pa.Array) -> pa.Array:
    return lists if lists.type.value_type == pa.int64() else map_elements(lists, casts.text_to_int)


def _floats_in_engine(engine: Engine, lists: ibis.Value) -> ibis.Value:
    kind = lists.type().value_type
    if kind.is_floating():
        return lists
    if kind.is_integer():
        return lists.cast("array<float64>")
    return _numbers_in_engine(lambda text: finite_in_engine(casts.float_of_text(text)))(engine, lists)


def _floats_in_arrow(lists: pa.Array) -> pa.Array:
    if lists.type.value_type == pa.float64():
        return lists
    if lists.type.value_type == pa.int64():
        return pc.cast(lists, pa.list_(pa.float64()), safe=False)
    return map_elements(lists, casts.finite_floats)


def _element_in_arrow(lists: pa.Array, index: int) -> pa.Array:
    lengths = lengths_of(lists)
    position = index - 1 if index > 0 else lengths + index
    starts = np.cumsum(lengths) - lengths
    outside = (lengths < abs(index)) | is_null(lists)
    return lists.flatten().take(pa.array(starts + position, mask=outside))


def _part_in_arrow(lists: pa.Array, count: int, from_end: bool) -> pa.Array:
    lengths = lengths_of(lists)
    kept = np.minimum(lengths, count)
    ends = np.cumsum(lengths)
    positions = np.arange(len(lists.flatten()))
    owners = np.repeat(np.arange(len(lists)), lengths)
    firsts = ends - (kept if from_end else lengths)
    inside = (positions >= firsts[owners]) & (positions < (firsts + kept)[owners])
    return lists_of(kept, lists.flatten().filter(pa.array(inside)), is_null(lists))


def _last_in_engine(engine: Engine, lists: ibis.Value, count: int) -> ibis.Value:
    size = engine_functions.size(lists)
    start = ibis.greatest(size - constant(count), constant(0)) + constant(1)
    # `greatest` ignores nulls, but a null list stays one.
    return engine_functions.sublist(engine, lists, start, count)


def _same(*kinds: Any) -> dict[Any, Any]:
    return {kind: kind for kind in kinds}


LIST_FUNCTIONS = (
    Function(
        "split",
        "split(text, ',')",
        "The parts of a text between a constant separator; an empty text has none.",
        fixed(TEXT, result=TEXTS),
        _split_in_engine,
        _split_in_arrow,
        parameters={"separator": FULL_TEXT},
    ),
    Function(
        "ints",
        "ints(list)",
        "The texts of a list as ints; a text that `cast` makes null is left out.",
        one_of({TEXTS: INTS, INTS: INTS}),
        _ints_in_engine,
        _ints_in_arrow,
    ),
    Function(
        "floats",
        "floats(list)",
        "The texts or ints of a list as floats; a text that `cast` makes null is left out.",
        one_of({TEXTS: FLOATS, INTS: FLOATS, FLOATS: FLOATS}),
        _floats_in_engine,
        _floats_in_arrow,
    ),
    Function(
        "len",
        "len(list)",
        "The number of elements.",
        one_of(dict.fromkeys(LISTS, INT)),
        lambda engine, lists: engine_functions.size(lists),
        lambda lists: pc.cast(pc.list_value_length(lists), pa.int64()),
    ),
    Function(
        "element",
        "element(list, 1)",
        "The element at an index, from 1, or from the end with -1, -2, ...; null in a shorter list.",
        one_of({INTS: INT, FLOATS: FLOAT, TEXTS: TEXT}),
        engine_functions.element,
        _element_in_arrow,
        parameters={"index": NOT_ZERO},
    ),
    Function(
        "first",
        "first(list, 3)",
        "At most so many elements from the start.",
        one_of(_same(*LISTS)),
        lambda engine, lists, count: engine_functions.sublist(engine, lists, constant(1), count),
        lambda lists, count: _part_in_arrow(lists, count, from_end=False),
        parameters={"count": POSITIVE},
    ),
    Function(
        "last",
        "last(list, 3)",
        "At most so many elements from the end.",
        one_of(_same(*LISTS)),
        _last_in_engine,
        lambda lists, count: _part_in_arrow(lists, count, from_end=True),
        parameters={"count": POSITIVE},
    ),
)
