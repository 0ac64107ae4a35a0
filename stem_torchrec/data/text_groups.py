"""Numbers for groups that are text: the same text has the same number in all files, processes and runs."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_END = np.uint64(256)
"""Stands for the end of a text, beside the 256 values of a byte."""
_TEXTS_AT_ONCE = 4096
"""Few enough that what is computed of them fits into a cache."""


def numbers_of(texts: pa.Array) -> NDArray[np.int64]:
    """A 64-bit hash of each text (N,), which has no nulls.

    The hash adds up a random number for each byte and its position (tabulation hashing, Zobrist 1970): that of two
    different texts is the same with a probability of 2^-64, however alike they are. Among n groups, some two are taken
    for one with a probability of about n^2 / 2^65: 3e-8 for a million, 0.03 for a billion.

    Example::

        numbers_of(pa.array(["u1", "u2", "u1"]))  # [6164299741064563529, -8395957953877709814, 6164299741064563529]
    """
    encoded = texts.dictionary_encode()
    distinct = encoded.dictionary.cast(pa.large_binary())
    parts = range(0, len(distinct), _TEXTS_AT_ONCE)
    hashes = [_hashes(distinct.slice(start, _TEXTS_AT_ONCE)) for start in parts]
    return np.concatenate([np.empty(0, np.int64), *hashes])[encoded.indices.to_numpy()]


def _hashes(texts: pa.Array) -> NDArray[np.int64]:
    lengths = pc.binary_length(texts).to_numpy().astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    _, offsets, data = texts.buffers()
    first = np.frombuffer(offsets, np.int64)[texts.offset]
    used = np.frombuffer(data, np.uint8)[first : first + lengths.sum()] if lengths.any() else np.empty(0, np.uint8)
    position = np.arange(len(used)) - np.repeat(starts, lengths)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_random(position, used))])
    # Sums wrap around, so their differences are those of the parts.
    hashes = sums[starts + lengths] - sums[starts] + _random(lengths, _END)
    return hashes.view(np.int64)


def _random(position: NDArray[np.int64], byte: NDArray[np.uint8] | np.uint64) -> NDArray[np.uint64]:
    """A random number for each position and byte: the mixer of SplitMix64 (Steele et al., OOPSLA 2014) on a counter."""
    counter = position.astype(np.uint64) * np.uint64(257) + byte + np.uint64(1)
    mixed = counter * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
