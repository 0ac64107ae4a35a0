"""Arithmetic of int64 arrays that is exact for all values, with null where the result has more than 64 bits."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stem_torchrec.expressions.arrow_arrays import Bools, Ints, is_null, numpy_of, with_nulls
from stem_torchrec.expressions.value_types import LEAST_INT


def add(a: pa.Array, b: pa.Array) -> pa.Array:
    """The sum."""

    def wraps(x: Ints, y: Ints, z: Ints) -> Bools:
        return ((x ^ z) & (y ^ z)) < 0

    return _checked(pc.add_checked, pc.add, wraps, a, b)


def subtract(a: pa.Array, b: pa.Array) -> pa.Array:
    """The difference."""

    def wraps(x: Ints, y: Ints, z: Ints) -> Bools:
        return ((x ^ y) & (x ^ z)) < 0

    return _checked(pc.subtract_checked, pc.subtract, wraps, a, b)


def multiply(a: pa.Array, b: pa.Array) -> pa.Array:
    """The product."""

    def wraps(x: Ints, y: Ints, z: Ints) -> Bools:
        # A wrapped product is off by multiples of 2^64, far more than the error of the estimate.
        estimate = x.astype(np.float64) * y.astype(np.float64)
        return (np.abs(estimate) >= 2.0**64) | (np.abs(estimate - z.astype(np.float64)) > 2.0**62)

    return _checked(pc.multiply_checked, pc.multiply, wraps, a, b)


def _checked(
    checked: Callable[..., pa.Array],
    wrapping: Callable[..., pa.Array],
    wraps: Callable[[Ints, Ints, Ints], Bools],
    a: pa.Array,
    b: pa.Array,
) -> pa.Array:
    """The result of a kernel, with null where it wraps around; looks for such rows only if there are some."""
    try:
        return checked(a, b)
    except pa.ArrowInvalid:
        wrapped = wrapping(a, b)
        outside = wraps(_ints(a), _ints(b), _ints(wrapped))
        return with_nulls(_ints(wrapped), outside | is_null(a, b))


def _ints(array: pa.Array) -> Ints:
    return np.asarray(numpy_of(array), dtype=np.int64)


def remainder(a: pa.Array, b: pa.Array) -> pa.Array:
    """What is left of a division towards 0, with the sign of the dividend."""
    dividend, divisor = _ints(a), _ints(b)
    # The remainder by -1 is 0, as by 1; of the least number C does not define it.
    safe = np.where((divisor == 0) | (divisor == -1), 1, divisor)
    return with_nulls(np.fmod(dividend, safe), is_null(a, b) | (divisor == 0))


def quotient(a: pa.Array, b: pa.Array) -> pa.Array:
    """The quotient, cut off towards 0."""
    dividend, divisor = _ints(a), _ints(b)
    outside = (divisor == 0) | ((divisor == -1) & (dividend == LEAST_INT))
    safe = np.where(outside, 1, divisor)
    rest = np.fmod(dividend, np.where(safe == -1, 1, safe))
    return with_nulls((dividend - rest) // safe, is_null(a, b) | outside)


def of_floats(values: pa.Array) -> pa.Array:
    """Whole floats as ints; null outside of 64 bits."""
    fits = pc.and_(pc.greater_equal(values, float(LEAST_INT)), pc.less(values, -float(LEAST_INT)))
    return pc.cast(pc.if_else(fits, values, pa.scalar(None, pa.float64())), pa.int64(), safe=False)
