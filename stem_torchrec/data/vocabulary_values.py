"""The values of a vocabulary in the order of their ids, told apart by a fingerprint that also knows their beginning."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa


def fingerprint(values: pa.Array, count: int) -> str:
    """SHA-256 of the first values of a vocabulary, whatever the file has besides.

    So the fingerprint and the size of yesterday's vocabulary tell whether today's begins with it, also when yesterday's
    log is gone.

    Example::

        old = fingerprint(pa.array(["rome", "oslo"]), 2)
        fingerprint(pa.array(["rome", "oslo", "bonn"]), 2) == old  # True: the vocabulary has grown
    """
    digest = hashlib.sha256()
    for part in _bytes_of(values.slice(0, count)):
        digest.update(part)
    return digest.hexdigest()


def _bytes_of(values: pa.Array) -> Iterator[Any]:
    """The kind of the values and their bytes; of texts, their lengths and then their bytes."""
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        texts = values.cast(pa.large_string())
        _, offsets, data = texts.buffers()
        yield b"text"
        if len(texts):
            ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
            yield np.diff(ends).astype("<i8").tobytes()
            yield memoryview(data)[ends[0] : ends[-1]]
        return
    plain = values.cast(pa.int32()) if pa.types.is_date32(values.type) else values
    kind = "<f8" if pa.types.is_floating(plain.type) else "<i8"
    yield from (str(values.type).encode(), plain.to_numpy(zero_copy_only=False).astype(kind).tobytes())
