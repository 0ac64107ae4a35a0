"""The AUC of two runs of a model together: what a second one of its kind would gain by itself.

A model that is as large as two has to be better than two of the base whose predictions are averaged.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.comparison.runs import Run
from stem_torchrec.data.pair_auc import pair_aucs

from gains.done import Done

_LEAST = 1e-9
"""Smallest probability of either label that a logit is taken of."""


def averages(done: Done, model: str) -> dict[str, tuple[float, float]]:
    """The AUC of a run, mean over the seeds, and that of the mean logit of two, mean over neighbouring seeds.

    By task; empty with fewer than two seeds.

    Args:
        done: the source.
        model: one of its models.

    Example::

        averages(done, "single_task")  # {"view": (0.7654, 0.7673), "buy": (0.7833, 0.7857)}
    """
    seeds = done.seeds(model)
    if len(seeds) < 2:
        return {}
    of_logs = [done.comparison(i, model, seeds).runs for i in range(len(done.source.logs))]
    one = [_aucs(done, run) for runs in of_logs for run in runs]
    two = [_aucs(done, *pair) for runs in of_logs for pair in pairwise(runs)]
    return {task: (_mean(one, task), _mean(two, task)) for task in one[0]}


def _mean(aucs: Sequence[Mapping[str, float]], task: str) -> float:
    return float(np.mean([of_run[task] for of_run in aucs]))


def _aucs(done: Done, *runs: Run) -> dict[str, float]:
    columns = [run.predictions() for run in runs]
    logits = np.mean([[_logit(each[f"prediction/{task}"]) for task in done.tasks] for each in columns], axis=0)
    labels = np.array([columns[0][f"label/{task}"] for task in done.tasks], dtype=np.float64)
    return pair_aucs(done.tasks, logits, np.nan_to_num(labels, nan=-1).astype(np.int8))


def _logit(probability: NDArray[np.floating]) -> NDArray[np.float64]:
    p = np.clip(probability.astype(np.float64), _LEAST, 1 - _LEAST)
    return np.log(p) - np.log1p(-p)
