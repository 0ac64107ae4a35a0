"""Ways to bring the tasks' gradients together, from their dot products alone.

Each takes G (T, T), the dot products of the gradients g_1 .. g_T in a step, and returns c (T,): the combination is the
sum of c_t g_t, and 1 everywhere is the plain sum. Every method crosses tasks: what the shared tables get for a task
depends on the gradients of the others.
"""

import numpy as np

from stem_torchrec.balance.simplex import SMALLEST, Numbers, least_in_ball, min_norm, norm_of

PARALLEL = 1e-6
"""Gradients whose correlations have an eigenvalue below this part of the largest are taken for parallel, two of them
below 0.002 radians: dot products of single precision do not tell in which direction they differ."""


def pcgrad(gram: Numbers, step: int) -> Numbers:
    """PCGrad: a task's gradient loses its part against each other one that it is in conflict with, in random order.

        for each i, for j != i in random order:  if v_i g_j < 0:  v_i <- v_i - (v_i g_j / |g_j|^2) g_j,  from v_i = g_i

    and the combination is the sum of all v_i. Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS
    2020, arXiv 2001.06782, alg. 1.

    Args:
        gram: see the module.
        step: from which the orders are drawn, so that all ranks, and a run that resumes, have the same.

    Example::

        pcgrad(np.array([[1.0, -1.0], [-1.0, 4.0]]), 0)  # [2.0, 1.25]
    """
    orders = np.random.default_rng(step)
    mixed = np.eye(len(gram))
    for i, own in enumerate(mixed):
        for j in orders.permutation(len(gram)):
            product = own @ gram[:, j]
            if j != i and product < 0:
                own[j] -= product / gram[j, j]
    return mixed.sum(axis=0)


def cagrad(gram: Numbers, caution: float) -> Numbers:
    """CAGrad: the direction near the mean gradient g_0 that serves the worst task best.

        max over d of min over t of g_t d,  |d - g_0| <= c |g_0|:   d = g_0 + c |g_0| g_w / |g_w|,
        g_w = sum of w_t g_t,  w on the simplex with the least  g_w g_0 + c |g_0| |g_w|

    times T, as the others are sums as well. Source: Liu et al., "Conflict-Averse Gradient Descent for Multi-task
    Learning", NeurIPS 2021, arXiv 2110.14048, eq. 3 and alg. 1; some of the authors' code also divides d by 1 + c^2.

    Args:
        gram: see the module.
        caution: c from 0, the plain sum, to below 1.
    """
    tasks = len(gram)
    radius = caution * norm_of(gram, np.full(tasks, 1 / tasks))
    if radius == 0:
        return np.ones(tasks)
    weights = least_in_ball(gram, radius)
    norm = norm_of(gram, weights)
    if norm <= SMALLEST * np.sqrt(gram.diagonal().max()):
        return np.ones(tasks)
    return 1 + tasks * radius / norm * weights


def gradcraft(gram: Numbers, norms: Numbers, magnitude: float, margin: float) -> Numbers:
    """GradCraft: lengths move towards the largest, then each gradient leaves all its conflicts at once.

        h_t = (tau * max_j m_j / m_t + 1 - tau) g_t,   m_t the moving average of |g_t|
        v_i = h_i + sum over j in C_i of w_j h_j,      C_i = {j: h_i h_j < 0},
        with w so that  v_i h_j = eps |h_i| |h_j|  for every j in C_i

    and the combination is the sum of all v_i. Source: Bai et al., "GradCraft: Elevating Multi-task Recommendations
    through Holistic Gradient Crafting", KDD 2024, arXiv 2407.19682, where m_t is the length of the step alone, as with
    --balance.memory 0; the authors' code has averages, which it does not use, and takes the mean of all v_i.

    Args:
        gram: see the module.
        norms: m (T,), above 0.
        magnitude: tau from 0, lengths as they are, to 1, all equal.
        margin: eps, the cosine that is left between a gradient and those that it was in conflict with.
    """
    factors = magnitude * norms.max() / norms + 1 - magnitude
    scaled = gram * np.outer(factors, factors)
    lengths = np.sqrt(scaled.diagonal())
    mixed = np.eye(len(gram))
    for i, own in enumerate(mixed):
        conflicts = np.flatnonzero(scaled[i] < 0)
        of_conflicts = lengths[conflicts]
        correlations = scaled[np.ix_(conflicts, conflicts)] / np.outer(of_conflicts, of_conflicts)
        wanted = margin * lengths[i] - scaled[i, conflicts] / of_conflicts
        # Least squares, as gradients in conflict with one may be multiples of each other.
        own[conflicts] += np.linalg.lstsq(correlations, wanted, rcond=PARALLEL)[0] / of_conflicts
    return factors * mixed.sum(axis=0)


def mgda(gram: Numbers) -> Numbers:
    """MGDA: the combination of least norm, along which no task's loss rises; times T.

        w on the simplex with the least |sum of w_t g_t|^2

    Source: Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, arXiv 1810.04650,
    eq. 3; their bound (MGDA-UB) takes gradients at a shared representation, which the pooled embeddings are. Their code
    multiplies whole losses by the w_t, as `--balance.weights pareto` does.
    """
    return len(gram) * min_norm(gram)
