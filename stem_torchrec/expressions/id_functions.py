"""From values to ids, and what goes with ids: two ways to an id, what a missing list gets, weights of several ids."""

from collections.abc import Callable, Sequence

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.expressions import engine_functions
from stem_torchrec.expressions.arrow_arrays import is_null, lengths_of, lists_of, numpy_of
from stem_torchrec.expressions.casts import int_to_text
from stem_torchrec.expressions.engine_functions import constant
from stem_torchrec.expressions.function import (
    ANY_NUMBER,
    ANY_TEXT,
    NOT_NEGATIVE,
    POSITIVE,
    WHOLE,
    Engine,
    Function,
    one_of,
)
from stem_torchrec.expressions.hashes import HASH_DIGITS, hash_of_texts, salts
from stem_torchrec.expressions.value_types import BOOL, DATE, FLOAT, FLOATS, INT, INTS, TEXT, TEXTS


def _hash_of_scalar(engine: Engine, scalar: ibis.Value, buckets: int, salt: str) -> ibis.Value:
    text = ibis.literal(salt) + (scalar.cast("string") if scalar.type().is_integer() else scalar)
    digits = engine_functions.substring(text.hexdigest("md5"), 1, HASH_DIGITS)
    return engine_functions.number_of_hex(engine, digits) % constant(buckets)


def _hash_in_engine(engine: Engine, value: ibis.Value, buckets: int, salt: str) -> ibis.Value:
    if value.type().is_array():
        return value.map(lambda scalar: _hash_of_scalar(engine, scalar, buckets, salt))
    return _hash_of_scalar(engine, value, buckets, salt)


def _hashes_in_engine(engine: Engine, value: ibis.Value, buckets: int, salt: str, hashes: int) -> ibis.Value:
    def of_scalar(scalar: ibis.Value) -> ibis.Value:
        return ibis.array([_hash_of_scalar(engine, scalar, buckets, each) for each in salts(salt, hashes)])

    if value.type().is_array():
        return value.map(of_scalar).flatten()
    return ibis.cases((value.notnull(), of_scalar(value)), else_=ibis.null("array<int64>"))


def _hash_of_scalars(scalars: pa.Array, buckets: int, salt: str) -> pa.Array:
    return hash_of_texts(int_to_text(scalars) if scalars.type == pa.int64() else scalars, buckets, salt)


def _hash_in_arrow(values: pa.Array, buckets: int, salt: str) -> pa.Array:
    return _each(values, lambda scalars: _hash_of_scalars(scalars, buckets, salt))


def _hashes_in_arrow(values: pa.Array, buckets: int, salt: str, hashes: int) -> pa.Array:
    scalars = values.flatten() if pa.types.is_list(values.type) else values.drop_null()
    ids = [numpy_of(_hash_of_scalars(scalars, buckets, each)) for each in salts(salt, hashes)]
    return _in_turn(values, ids)


def _in_turn(values: pa.Array, columns: Sequence[np.ndarray]) -> pa.Array:
    """A list for each value or list of values, with an element of each column for each of its values."""
    lengths = lengths_of(values) if pa.types.is_list(values.type) else (~is_null(values)).astype(np.int64)
    return lists_of(lengths * len(columns), pa.array(np.stack(columns, axis=1).reshape(-1)), is_null(values))


def _each(values: pa.Array, kernel: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """The kernel of scalars for an array, or for the elements of its lists, none of which it makes null."""
    if not pa.types.is_list(values.type):
        return kernel(values)
    return lists_of(lengths_of(values), kernel(values.flatten()), is_null(values))


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


def _engines_join(*_: object, **__: object) -> ibis.Value:
    raise AssertionError("an engine joins a vocabulary instead")


def _or_single_in_engine(_: Engine, lists: ibis.Value, value: float) -> ibis.Value:
    kind = int if lists.type().value_type.is_integer() else float
    single = ibis.array([constant(kind(value))])
    return ibis.cases((lists.isnull() | (lists.length() == 0), single), else_=lists)


def _or_single_in_arrow(lists: pa.Array, value: float) -> pa.Array:
    lengths = lengths_of(lists)
    counts = np.maximum(lengths, 1)
    starts = np.cumsum(counts) - counts
    elements = np.full(int(counts.sum()), value, dtype=lists.type.value_type.to_pandas_dtype())
    filled = np.ones(len(elements), dtype=bool)
    filled[starts[lengths == 0]] = False
    elements[filled] = lists.flatten().to_numpy(zero_copy_only=False)
    return lists_of(counts, pa.array(elements), np.zeros(len(lists), dtype=bool))


def _repeat_in_engine(_: Engine, value: ibis.Value, count: int) -> ibis.Value:
    if value.type().is_array():
        return value.map(lambda each: ibis.array([each] * count)).flatten()
    kind = value.type()
    # Not by `notnull`, which Ibis also denies of NaN.
    return ibis.cases((value.isnull(), ibis.null(f"array<{kind}>")), else_=ibis.array([value] * count))


def _repeat_in_arrow(values: pa.Array, count: int) -> pa.Array:
    scalars = values.flatten() if pa.types.is_list(values.type) else values.drop_null()
    return _in_turn(values, [scalars.to_numpy(zero_copy_only=False)] * count)


_KEYS = {INT: INT, TEXT: INT, INTS: INTS, TEXTS: INTS}

ID_FUNCTIONS = (
    Function(
        "hash_ids",
        "hash_ids(a, buckets, salt, hashes)",
        "A list with several ids for each value, each of another salt as hash_id computes it.",
        one_of(dict.fromkeys(_KEYS, INTS)),
        _hashes_in_engine,
        _hashes_in_arrow,
        parameters={"buckets": POSITIVE, "salt": ANY_TEXT, "hashes": POSITIVE},
        fitted=True,
    ),
    Function(
        "or_single",
        "or_single(list, value)",
        "The list, or one with a single constant in place of an empty or missing list.",
        one_of({INTS: INTS, FLOATS: FLOATS}),
        _or_single_in_engine,
        _or_single_in_arrow,
        parameters={"value": ANY_NUMBER},
        fitted=True,
    ),
    Function(
        "repeat",
        "repeat(a, count)",
        "A list with each value, or each element of a list, so many times.",
        one_of({FLOAT: FLOATS, INT: INTS, INTS: INTS, FLOATS: FLOATS}),
        _repeat_in_engine,
        _repeat_in_arrow,
        parameters={"count": POSITIVE},
        fitted=True,
    ),
    Function(
        "hash_id",
        "hash_id(a, buckets, salt)",
        "The first 13 hexadecimal digits of md5 of the salt and the value, modulo the number of buckets.",
        one_of(_KEYS),
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
        one_of(_KEYS | {BOOL: INT, FLOAT: INT, DATE: INT}),
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
