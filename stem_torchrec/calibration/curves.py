"""Curves from a prediction to a probability, and `calibrate`, which applies one. Needs numpy alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST = float(np.finfo(np.float64).epsneg)
"""2^-53: 1 - 2^-53 is the largest probability below 1, so logits and losses go to 36.7."""


@dataclass(frozen=True)
class IsotonicCurve:
    """Straight lines between knots, flat before the first and behind the last.

    Example::

        IsotonicCurve(predictions=(0.1, 0.3, 0.4), probabilities=(0.05, 0.05, 0.2))
        # 0.0 -> 0.05, 0.2 -> 0.05, 0.35 -> 0.125, 0.9 -> 0.2
    """

    predictions: tuple[float, ...]
    """Where the knots are, increasing, from 0 to 1."""
    probabilities: tuple[float, ...]
    """What they become, not decreasing, from 0 to 1."""


@dataclass(frozen=True)
class PlattCurve:
    """sigmoid(a logit(p) + b) of a prediction p (Platt, 1999).

    Example::

        PlattCurve(a=1.0, b=-0.5)  # 0.5 -> 0.378, 0.9 -> 0.845
    """

    a: float
    """0 or more, so that the curve does not fall."""
    b: float


Curve = IsotonicCurve | PlattCurve


def check_curve(curve: Curve) -> None:
    """Raises ValueError, which says what is wrong, for a curve that falls or leaves [0, 1]."""
    if isinstance(curve, PlattCurve):
        if not (np.isfinite([curve.a, curve.b]).all() and curve.a >= 0):
            raise ValueError(f"a is {curve.a} and b is {curve.b}, but both must be finite, and a 0 or more")
        return
    x, y = np.array(curve.predictions, np.float64), np.array(curve.probabilities, np.float64)
    if not len(x) or len(x) != len(y):
        raise ValueError(f"it has {len(x)} predictions and {len(y)} probabilities; it needs as many, and at least one")
    ends = np.concatenate([x[[0, -1]], y[[0, -1]]])
    # A NaN anywhere makes one of them false.
    if not ((np.diff(x) > 0).all() and (np.diff(y) >= 0).all() and (ends >= 0).all() and (ends <= 1).all()):
        raise ValueError("its predictions must increase, its probabilities not decrease, and all be from 0 to 1")


def calibrate(probabilities: ArrayLike, curve: Curve) -> NDArray[np.float64]:
    """What a curve makes of predictions.

    Args:
        probabilities: predictions of a model from 0 to 1, of any shape; NaN stays NaN.
        curve: of the task.

    Returns probabilities from 0 to 1 in the same shape. Raises ValueError for a prediction outside of [0, 1].

    Example::

        calibrate([0.0, 0.35], IsotonicCurve((0.1, 0.3, 0.4), (0.05, 0.05, 0.2)))  # [0.05, 0.125]
    """
    p = np.asarray(probabilities, np.float64)
    outside = p[(p < 0) | (p > 1)]
    if outside.size:
        raise ValueError(f"the prediction {outside[0]} is no probability; give numbers from 0 to 1, not logits")
    if isinstance(curve, IsotonicCurve):
        # With a single knot np.interp is flat for NaN as well.
        return np.where(np.isnan(p), np.nan, np.interp(p, curve.predictions, curve.probabilities))
    return sigmoid(curve.a * logits(p) + curve.b)


def sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-z)), without an overflow."""
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z < 0, small, 1.0) / (1 + small))


def logits(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(p / (1 - p)), from -36.7 to 36.7, the logits of 2^-53 and 1 - 2^-53."""
    p = np.clip(probabilities, LEAST, 1 - LEAST)
    return np.asarray(np.log(p) - np.log1p(-p))
