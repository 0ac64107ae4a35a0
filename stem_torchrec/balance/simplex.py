"""The solvers behind MGDA and CAGrad: combinations of gradients of which only the dot products are known.

Weights are from 0 to 1 and their sum is 1. Where the papers iterate, least squares with weights from 0 on are exact.
"""

import math

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

SMALLEST = 1e-6
"""A combination that is shorter than this part of the longest gradient has no direction: the gradients cancel."""


def min_norm(gram: Numbers) -> Numbers:
    """The weights w (T,) of the combination of T gradients of least norm, that is with the least w G w.

    Source: Sener and Koltun, NeurIPS 2018, arXiv 1810.04650, eq. 3. For two tasks this is the closed form of alg. 1
    there: w_1 = (g_2 - g_1) g_2 / |g_1 - g_2|^2, cut off at 0 and 1.

    No gradient g_t has a smaller product with the combination d than |d|^2, but for 1e-14 |g_t| |d|: rounding, also
    where lengths are 1e14 apart. By then that may be more than the square of the shortest gradient.

    Args:
        gram: dot products G (T, T) of the gradients.

    Example::

        min_norm(np.array([[1.0, 0.0], [0.0, 3.0]]))  # [0.75, 0.25]
    """
    if len(gram) == 2:
        apart = gram[0, 0] - 2 * gram[0, 1] + gram[1, 1]
        first = min(max((gram[1, 1] - gram[0, 1]) / apart, 0.0), 1.0) if apart > 0 else 0.5
        return np.array([first, 1 - first])
    # Imported late, as a machine that balances nothing need not have scipy.
    from scipy.optimize import nnls

    # The least |A v|^2 + (sum v - 1)^2 over v >= 0 with A'A = G has the direction of w, whatever its length.
    lengths = np.sqrt(gram.diagonal().clip(min=0))
    if lengths.min() == 0:
        return np.eye(len(gram))[lengths.argmin()]
    squares, axes = np.linalg.eigh(gram / np.outer(lengths, lengths))
    roots = np.sqrt(squares.clip(min=0))[:, None] * axes.T * (lengths / lengths.min())
    direction, _ = nnls(np.vstack([roots, np.ones(len(gram))]), np.eye(len(gram) + 1)[-1], maxiter=100 * len(gram))
    return direction / direction.sum()


def least_in_ball(gram: Numbers, radius: float) -> Numbers:
    """The weights w (T,) with the least  g_w g_0 + radius * |g_w|,  g_w the combination and g_0 the mean gradient.

    As radius * |g_w| is the least  radius / 2 * (|g_w|^2 / x + x)  over x > 0, these are the weights of the combination
    of least norm of the gradients g_t + x / radius * g_0, for the x that is |g_w|.

    Args:
        gram: dot products (T, T) of the gradients, none of which is 0.
        radius: above 0.
    """
    from scipy.optimize import brentq

    with_mean = gram.mean(axis=1)

    def weights(x: float) -> Numbers:
        shift = x / radius
        return min_norm(gram + shift * (with_mean[:, None] + with_mean) + shift**2 * with_mean.mean())

    def excess(x: float) -> float:
        return x - norm_of(gram, weights(x))

    longest = math.sqrt(gram.diagonal().max())
    shortest = SMALLEST * longest
    if excess(shortest) >= 0:
        return weights(shortest)
    # Of gradients that are all equal every combination is as long as the longest, or longer by rounding.
    if excess(longest) <= 0:
        return weights(longest)
    return weights(brentq(excess, shortest, longest, xtol=1e-12 * longest))


def norm_of(gram: Numbers, weights: Numbers) -> float:
    """The length of a combination of gradients."""
    return math.sqrt(max(float(weights @ gram @ weights), 0.0))
