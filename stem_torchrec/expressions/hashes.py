"""The ids of values by their hash, without an engine: what the functions `hash_id` and `hash_ids` compute."""

import hashlib

import pyarrow as pa

HASH_DIGITS = 13
"""Hexadecimal digits of md5 that make an id before the modulo: 52 bits."""


def salts(salt: str, hashes: int) -> list[str]:
    """The salts of several hashes; the first is that of a single one.

    Example::

        salts("a", 2)  # ["a", "a\x1f1"]
    """
    return [salt, *(f"{salt}\x1f{i}" for i in range(1, hashes))]


def hash_id(text: str, buckets: int, salt: str) -> int:
    """The id of a text, or of an int by its decimal digits.

    Example::

        hash_id("shoes", buckets=1000, salt="")  # 4
    """
    return int(hashlib.md5((salt + text).encode()).hexdigest()[:HASH_DIGITS], 16) % buckets


def hash_of_texts(texts: pa.Array, buckets: int, salt: str) -> pa.Array:
    """The ids of an array of texts, as int64; null where the text is."""
    # Each distinct value is hashed once: md5 in Python takes about a microsecond.
    encoded = texts.dictionary_encode()
    ids = [hash_id(text, buckets, salt) for text in encoded.dictionary.to_pylist()]
    return pa.array(ids, pa.int64()).take(encoded.indices)
