"""Losses that are not finite: batches to skip, or to keep for whoever looks into it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.datasets.utils import Batch

from stem_torchrec.runtime.internals.torchrec_hooks import BackwardPipeline
from stem_torchrec.runtime.progress import log_rank0


class SkippingPipeline(BackwardPipeline):
    """Skips the backward pass of a batch whose loss is not finite on some rank, on all ranks.

    So no table, no dense weight and no state of an optimizer is touched. The host waits for the loss of each step.
    """

    skipped = 0
    """Batches so far."""

    def backward_pass(self, losses: Tensor) -> None:
        finite = torch.isfinite(losses.detach()).all().int()
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        if finite.item():
            super().backward_pass(losses)
            return
        self.skipped += 1
        log_rank0(f"note: the loss of a batch is not finite; the batch is skipped, {self.skipped} so far")


def keep_batch(batch: Batch, folder: Path, *, dense: tuple[str, ...], labels: tuple[str, ...], name: str) -> Path:
    """Writes a batch as Parquet, a row for each of its rows with features, labels and all, and returns the file.

    Args:
        batch: as the reader made it.
        folder: made if it is not there.
        dense: names of the dense features.
        labels: names of the labels.
        name: of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sparse = {
        key: pa.ListArray.from_arrays(feature.offsets().to(torch.int32).numpy(), feature.values().numpy())
        for key, feature in batch.sparse_features.to_dict().items()
    }
    columns = {
        **sparse,
        **{key: batch.dense_features[:, i].numpy() for i, key in enumerate(dense)},
        **{key: pa.array(batch.labels[:, i].numpy(), from_pandas=True) for i, key in enumerate(labels)},
    }
    path = folder / f"{name}.parquet"
    pq.write_table(pa.table(columns), path)
    return path
