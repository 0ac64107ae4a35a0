"""Ids of a log that are newer than a run: its tables have no rows for them, and they are read as unseen values."""

import torch
from torch import Tensor
from torchrec.datasets.utils import Batch

from stem_torchrec.data.columns import Columns

UNSEEN = 0
"""The id of a value that a vocabulary lacks."""


def read_as_unseen(batch: Batch, columns: Columns) -> Tensor:
    """Gives the ids of a batch on the CPU that are beyond the rows of their tables the id of unseen values.

    Returns how many there were by feature, int64 of shape (F,).

    Example::

        # columns.sparse["uid"].num_embeddings is 1000, columns.ids_of_log["uid"] is 1030
        batch.sparse_features["uid"].values()  # [7, 1004]
        read_as_unseen(batch, columns)         # [1, 0, 0]
        batch.sparse_features["uid"].values()  # [7, 0]
    """
    counts = torch.zeros(len(columns.sparse), dtype=torch.int64)
    for i, (name, feature) in enumerate(columns.sparse.items()):
        if name in columns.ids_of_log:
            ids = batch.sparse_features[name].values()
            beyond = ids >= feature.num_embeddings
            counts[i] = beyond.count_nonzero()
            ids.masked_fill_(beyond, UNSEEN)
    return counts
