"""The best linear image of a shared table: what a model without a task's own table can read in its place at least."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stem_torchrec.comparison.diagnostics import FeatureTables
from stem_torchrec.tables import SHARED, table_name

_BLOCK_ROWS = 65_536


def linear_images(tables: FeatureTables, counts: Mapping[str, NDArray[np.int64]]) -> dict[str, Tensor]:
    """For each table of a task, `group/feature`, the matrix (D_s, D) that maps the shared rows closest to its rows.

    M = argmin over M of sum_i n_i |E_g[i] - E_s[i] M|^2, where id i stands n_i times in the training rows. A model that
    reads the shared table in the place of E_g can do the same: the first layers of experts and gates, which are linear,
    take M in. So what is lost by M is at least what a model loses that is trained without the table, up to training.

    Tables of one feature are in memory at a time.

    Args:
        tables: of the run.
        counts: how often ids stand in the training rows, by feature; all count alike where it is missing.
    """
    images = {}
    for feature in tables.features:
        groups = list(tables.sizes(feature))
        if SHARED not in groups or len(groups) == 1:
            continue
        weights = tables.read(feature)
        shared, count = weights[SHARED], counts.get(feature)
        times = torch.ones(len(shared), dtype=torch.float64) if count is None else torch.from_numpy(count).double()
        inverse = torch.linalg.pinv(_weighted_product(shared, times, shared), hermitian=True)
        for group in groups:
            if group != SHARED:
                image = inverse @ _weighted_product(shared, times, weights[group])
                images[table_name(group, feature)] = image.float()
    return images


def _weighted_product(a: Tensor, times: Tensor, b: Tensor) -> Tensor:
    """A^T diag(times) B in float64, block by block."""
    blocks = zip(a.split(_BLOCK_ROWS), times.split(_BLOCK_ROWS), b.split(_BLOCK_ROWS), strict=True)
    return sum((x.double().T @ (n[:, None] * y.double()) for x, n, y in blocks), start=torch.zeros(()).double())
