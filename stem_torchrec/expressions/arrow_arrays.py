"""Between Arrow arrays with nulls and numpy arrays without: what the kernels of several kinds of functions need."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def numpy_of(array: pa.Array) -> npt.NDArray[np.generic]:
    """The numbers of an array, 0 where it is null."""
    return pc.fill_null(array, pa.scalar(0, array.type)).to_numpy(zero_copy_only=False)


def is_null(*arrays: pa.Array) -> Bools:
    """Where any of the arrays is null."""
    nulls = np.zeros(len(arrays[0]), dtype=bool)
    for array in arrays:
        if array.null_count:
            nulls |= pc.is_null(array).to_numpy(zero_copy_only=False)
    return nulls


def with_nulls(values: npt.NDArray[np.generic], nulls: Bools) -> pa.Array:
    """The array of numbers that is null in some places."""
    return pa.array(values, mask=nulls)


def finite(array: pa.Array) -> pa.Array:
    """Floats with null in place of NaN and infinity."""
    kept = pc.is_finite(array)
    if pc.all(kept).as_py() in (True, None):
        return array
    return pc.if_else(kept, array, pa.scalar(None, array.type))


def where(condition: pa.Array, array: pa.Array) -> pa.Array:
    """The array with null wherever the condition is not true."""
    return pc.if_else(condition, array, pa.scalar(None, array.type))


def lists_of(lengths: Ints, elements: pa.Array, nulls: Bools) -> pa.Array:
    """Lists of the given lengths; a null list has length 0."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    mask = pa.array(nulls) if nulls.any() else None
    return pa.ListArray.from_arrays(pa.array(offsets), elements, mask=mask)


def lengths_of(lists: pa.Array) -> Ints:
    """How many elements each list has; 0 for a null list."""
    return np.asarray(numpy_of(pc.list_value_length(lists)), dtype=np.int64)


def map_elements(lists: pa.Array, kernel: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """Lists of what a kernel makes of each element; an element of which it makes null is left out."""
    elements, lengths, nulls = kernel(lists.flatten()), lengths_of(lists), is_null(lists)
    if elements.null_count:
        kept = pc.is_valid(elements)
        owners = np.repeat(np.arange(len(lists)), lengths)[kept.to_numpy(zero_copy_only=False)]
        lengths, elements = np.bincount(owners, minlength=len(lists)), elements.filter(kept)
    return lists_of(lengths, elements, nulls)
