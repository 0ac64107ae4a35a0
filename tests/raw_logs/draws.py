"""Draws that look like a log: frequent and rare ids, and labels that depend on the ids weakly enough to be learned."""

import numpy as np

Array = np.ndarray


def generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def skewed(rng: np.random.Generator, size: int, values: int, head: int = 5) -> Array:
    """Draws from 0 to `values` - 1 with frequencies in proportion to 1 / (value + `head`)."""
    drawn = head * np.expm1(rng.random(size) * np.log1p(values / head))
    return np.minimum(drawn.astype(np.int64), values - 1)


def label(rng: np.random.Generator, rate: float, *effects: Array, within: Array | None = None) -> Array:
    """1 in this share of the rows, more often where the sum of the effects is large; 0 outside of `within`.

    Args:
        rng: draws the noise.
        rate: share of 1 among the rows, or among those of `within`, which gets one at least.
        effects: numbers of about 1 for each row.
        within: rows that can be 1.
    """
    score = sum(effects) + rng.logistic(size=len(effects[0]))
    if within is not None:
        score = np.where(within, score, -np.inf)
    positive = max(round(rate * np.isfinite(score).sum()), 1)
    return (score >= np.partition(score, -positive)[-positive]).astype(np.int64) * np.isfinite(score)


def effect(rng: np.random.Generator, values: int, of: Array, scale: float = 0.8) -> Array:
    """An effect of each value, for the rows of `of`."""
    return rng.normal(0, scale, values)[of]


def some(rng: np.random.Generator, size: int, share: float) -> Array:
    """True in about this share of the rows."""
    return rng.random(size) < share
