"""Losses that are not finite: skips their batches, or writes them to a file."""

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.datasets.utils import Batch

from stem_torchrec.data.columns import Columns
from stem_torchrec.data.label_counts import weights_of
from stem_torchrec.runtime.internals.torchrec_hooks import BackwardPipeline
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import AnyPath


class SkippingPipeline(BackwardPipeline):
    """Skips the backward pass on all ranks where the loss of a batch is not finite on any of them.

    No table, no dense weight and no optimizer state changes then. The host waits for the loss of each step.
    """

    skipped = 0
    """Batches skipped so far."""

    def backward_pass(self, losses: Tensor) -> None:
        finite = torch.isfinite(losses.detach()).all().int()
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if finite.item():
            super().backward_pass(losses)
            return
        self.skipped += 1
        log_rank0(f"note: the loss of a batch is not finite; the batch is skipped, {self.skipped} so far")


def keep_batch(batch: Batch, folder: AnyPath, columns: Columns, *, name: str) -> AnyPath:
    """Writes a batch as Parquet, with the features and labels of each row and their weights, and returns the path.

    Args:
        batch: as the reader made it.
        folder: is created.
        columns: of the log.
        name: of the file, without its suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    features, row_weights = batch.sparse_features.to_dict(), weights_of(batch)

    def lists(feature: str, values: Tensor) -> pa.ListArray:
        return pa.ListArray.from_arrays(features[feature].offsets().to(torch.int32).numpy(), values.numpy())

    table = {
        **{key: lists(key, feature.values()) for key, feature in features.items()},
        **{weights: lists(key, features[key].weights()) for key, weights in columns.weights.items()},
        **{key: batch.dense_features[:, i].numpy() for i, key in enumerate(columns.dense)},
        **{key: pa.array(batch.labels[:, i].numpy(), from_pandas=True) for i, key in enumerate(columns.labels)},
    }
    if row_weights is not None:
        table |= {f"weight/{key}": row_weights[:, i].numpy() for i, key in enumerate(columns.labels)}
    path = folder / f"{name}.parquet"
    with path.open("wb") as file:
        pq.write_table(pa.table(table), file)
    return path
