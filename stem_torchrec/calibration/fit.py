"""Fits a curve to predictions and labels, or says why none fits.

Curves keep the sum: on the fitted rows, predicted over observed is 1.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize, root

from stem_torchrec.calibration.curves import Curve, IsotonicCurve, PlattCurve, logits, sigmoid
from stem_torchrec.calibration.labeled_rows import LabeledRows

Method = Literal["isotonic", "platt"]

_ROUNDING = 1e-15
"""Relative error of a curve's two numbers."""


class NoCurveError(Exception):
    """No curve fits the rows; the message says why, as `all its labels are 0`."""


def fit(rows: LabeledRows, method: Method) -> Curve:
    """The curve of a task. Raises NoCurveError for rows without labels of both kinds, and as `fit_platt` does."""
    if not len(rows.positive):
        raise NoCurveError("it has no labels")
    if rows.positive.all() or not rows.positive.any():
        raise NoCurveError(f"all its labels are {int(rows.positive[0])}")
    return fit_isotonic(rows) if method == "isotonic" else fit_platt(rows)


def fit_isotonic(rows: LabeledRows) -> IsotonicCurve:
    """The curve that does not fall and is nearest to the labels (Zadrozny and Elkan, KDD 2002), kept off 0 and 1.

    Rows with equal predictions are one point. Among the lowest predictions often no label is 1, and a probability of
    0 would make the loss of one later label infinite: such a level joins the next one, as does one of labels 1 alone.

    `rows` have labels of both kinds.

    Example::

        # predictions  0.1  0.2  0.3  0.4  0.5  0.6  0.7
        # labels       0    1    0    0    1    1    0
        # nearest      0    1/3  1/3  1/3  2/3  2/3  2/3
        # levels       1/4  1/4  1/4  1/4  2/3  2/3  2/3
    """
    x, place = np.unique(rows.predictions, return_inverse=True)
    weights = np.bincount(place, rows.weights)
    positives = np.bincount(place, rows.weights * rows.positive)
    # Blocks of points that have one level: point i is in block j if starts[j] <= i < starts[j + 1].
    starts = isotonic_regression(positives / weights, weights=weights).blocks[:-1]
    of_block, ones = np.add.reduceat(weights, starts), np.add.reduceat(positives, starts)
    # Sums of labels 0 and of labels 1 are exact zeros where a block has none.
    zeros = np.add.reduceat(np.bincount(place, rows.weights * ~rows.positive), starts)
    joins = np.zeros(len(starts), bool)
    joins[1:] = (zeros[1:] == 0) | (np.cumsum(ones)[:-1] == 0)
    starts = starts[~joins]
    block = np.cumsum(~joins) - 1
    levels = np.bincount(block, ones) / np.bincount(block, of_block)
    last = np.append(starts[1:], len(x)) - 1
    knots = np.unique(np.stack([starts, last]))
    levels_at = levels[np.searchsorted(starts, knots, side="right") - 1]
    # Levels that are equal but for rounding must not fall.
    return IsotonicCurve(tuple(x[knots].tolist()), tuple(np.maximum.accumulate(levels_at).tolist()))


def fit_platt(rows: LabeledRows) -> PlattCurve:
    """The logistic regression of the labels on the logits of the predictions (Platt, 1999), without regularization.

    Where higher predictions go with fewer labels 1, `a` is 0, which of the curves that do not fall is the nearest.

    `rows` have labels of both kinds. Raises NoCurveError where the predictions separate them: no slope is the steepest.
    """
    x, y = logits(rows.predictions), rows.positive.astype(np.float64)
    share = rows.weights / rows.weights.sum()
    rate = float(share @ y)
    if share @ ((y - rate) * x) <= 0 or x.min() == x.max():
        return PlattCurve(0.0, float(np.log(rate) - np.log1p(-rate)))
    if x[~rows.positive].max() <= x[rows.positive].min():
        raise NoCurveError("its predictions separate the labels 0 from the labels 1, which --method isotonic takes")

    def loss(curve: NDArray[np.float64]) -> float:
        z = curve[0] * x + curve[1]
        return float(share @ (np.logaddexp(0, z) - y * z))

    def gradient(curve: NDArray[np.float64]) -> NDArray[np.float64]:
        residual = share * (sigmoid(curve[0] * x + curve[1]) - y)
        return np.array([residual @ x, residual.sum()])

    def curvature(curve: NDArray[np.float64]) -> NDArray[np.float64]:
        p = sigmoid(curve[0] * x + curve[1])
        of_rows = share * p * (1 - p)
        slope = of_rows @ x
        return np.array([[of_rows @ (x * x), slope], [slope, of_rows.sum()]])

    near = minimize(loss, np.array([1.0, 0.0]), jac=gradient, hess=curvature, method="trust-exact").x
    # The loss is flat at its minimum, to half of the digits; the gradient crosses 0 in a place that all digits tell.
    a, b = root(gradient, near, jac=curvature, tol=_ROUNDING).x
    return PlattCurve(max(float(a), 0.0), float(b))
