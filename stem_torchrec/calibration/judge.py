"""How well predictions are calibrated: NE and PCOC, as `metrics.task_metrics` defines them, of plain arrays."""

import math
from dataclasses import dataclass

import numpy as np

from stem_torchrec.calibration.curves import LEAST
from stem_torchrec.calibration.labeled_rows import LabeledRows


@dataclass(frozen=True)
class Judgment:
    """NE and PCOC of some rows; NaN where the labels leave one undefined."""

    ne: float
    """Logloss over that of always predicting the mean label; lower is better (He et al., ADKDD 2014, eq. 1)."""
    pcoc: float
    """Predicted over observed labels 1: sum(p) / sum(y); 1 is best."""


def judge(rows: LabeledRows) -> Judgment:
    """NE and PCOC of the predictions of rows, by their weights.

    A prediction below 2^-53 or above 1 - 2^-53 counts as that, so that no loss is infinite.
    """
    weights, p = rows.weights, np.clip(rows.predictions, LEAST, 1 - LEAST)
    total, ones = math.fsum(weights), math.fsum(weights[rows.positive])
    if not ones:
        return Judgment(math.nan, math.nan)
    pcoc = math.fsum(weights * rows.predictions) / ones
    if rows.positive.all():
        return Judgment(math.nan, pcoc)
    losses = -np.where(rows.positive, np.log(p), np.log1p(-p))
    rate = ones / total
    entropy = -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)
    return Judgment(math.fsum(weights * losses) / total / entropy, pcoc)
