"""Two runs of the base averaged, as a model of its own: what a model that is as large as two has to be better than.

With n seeds the runs stand in a ring, and each is averaged with the next one, so that there are n pairs. As a pair
shares each of its runs with another pair, draws of pairs would vary too little with the seeds. So a draw takes seeds,
as it does for every model, and measures for a drawn seed

    AUC of its run + (AUC of the pair - mean AUC of its two runs)

of which the first varies as the base does, and the second is what a second run gains. The mean over all seeds is that
of the AUC of the pairs.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from stem_torchrec.calibration.curves import logits
from stem_torchrec.comparison.resampling import Resampled
from stem_torchrec.comparison.scored_rows import ScoredRows

_NEXT, _PAIR = "next run", "pair of runs"


def add_pairs(scored: ScoredRows, base: str) -> None:
    """Adds what `of_pairs` needs to the predictions: of each run of the base the next one, and the mean of both."""
    for by_model in scored.scores.values():
        runs = by_model[base]
        by_model[_NEXT] = [*runs[1:], runs[0]]
        by_model[_PAIR] = [mean_of(*both) for both in zip(runs, by_model[_NEXT], strict=True)]


def mean_of(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """The probabilities of the mean of two runs' logits."""
    return np.asarray(expit(sum(logits(each.astype(np.float64)) for each in (first, second)) / 2))


def of_pairs(resampled: Resampled, base: str) -> tuple[float, NDArray[np.float64]]:
    """The AUC of two runs over all rows, mean over the pairs, and that of each draw.

    Args:
        resampled: of predictions with those of `add_pairs`.
        base: the model that the runs are of.
    """
    drawn = resampled.drawn
    return resampled.whole[_PAIR], drawn[_PAIR] + (drawn[base] - drawn[_NEXT]) / 2
