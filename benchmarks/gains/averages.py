"""The AUC of two runs of a model together: what a second one of its kind would gain by itself.

A model that is as large as two has to be better than two of the base whose predictions are averaged.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean

import numpy as np

from stem_torchrec.data.pair_auc import pair_aucs

from gains.done import Done
from gains.of_two import mean_of


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
    of_pairs = [pair for i in range(len(done.source.logs)) for pair in _of_pairs(done, i, model, seeds)]
    return {
        task: (fmean(done.aucs(model, seeds, task)), fmean(aucs[task] for aucs in of_pairs)) for task in of_pairs[0]
    }


def _of_pairs(done: Done, log: int, model: str, seeds: Sequence[int]) -> Iterator[dict[str, float]]:
    """By task, the AUC of the mean logits of each two neighbouring runs on a log."""
    for first, second in pairwise(run.predictions() for run in done.comparison(log, model, seeds).runs):
        names = [f"prediction/{task}" for task in done.tasks]
        means = [mean_of(first[name], second[name]) for name in names]
        labels = np.array([first[f"label/{task}"] for task in done.tasks], dtype=np.float64)
        yield pair_aucs(done.tasks, np.array(means), np.nan_to_num(labels, nan=-1).astype(np.int8))
