"""The process of one rank of benchmarks/metrics.py: computes the metrics of one side, and prints what that took.

Its argument is a JSON list of the side and the rows over all ranks; its last line is a JSON object.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from stem_torchrec.metrics.multi_task import MultiTaskMetrics
from stem_torchrec.runtime.process import join_process_group

from studies.exact_metrics import Side

BATCH = 2**16
USERS_PER_ROW = 1 / 50


def work(side: Side, rows: int) -> None:
    """Computes the metrics of this rank's share of `rows`; prints the seconds, the memory and the AUC as JSON."""
    with join_process_group() as process:
        share = rows * (process.rank + 1) // process.world_size - rows * process.rank // process.world_size
        batches = draw(share, seed=process.rank)
        before = peak_mib()
        start = time.perf_counter()
        drawing = 0.0
        metrics = MultiTaskMetrics(["task"])
        logits: list[Tensor] = []
        labels: list[Tensor] = []
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            drawing += time.perf_counter() - begin
            if batch is None:
                break
            if side == "ours":
                metrics.update(*batch)
            else:
                logits.append(batch[0])
                labels.append(batch[1])
        if side == "ours":
            auc = metrics.compute()["task"].auc
        elif side == "sklearn":
            auc = float(roc_auc_score(torch.cat(labels)[:, 0], torch.cat(logits)[:, 0]))
        else:
            from torchmetrics.classification import BinaryAUROC  # Its import warns, and only this side needs it.

            # None asks for the exact curve.
            exact = BinaryAUROC(thresholds=None)
            exact.update(torch.cat(logits)[:, 0], torch.cat(labels)[:, 0].long())
            auc = exact.compute().item()
        seconds = time.perf_counter() - start - drawing
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib() - before, "auc": auc}))


def draw(rows: int, *, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of logits (B, 1), labels (B, 1) and users (B,)."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, rows, BATCH):
        size = min(BATCH, rows - start)
        logits = torch.randn(size, 1, generator=generator)
        labels = (torch.rand(size, 1, generator=generator) < (logits - 2).sigmoid()).float()
        yield logits, labels, torch.randint(max(1, int(rows * USERS_PER_ROW)), (size,), generator=generator)


def peak_mib() -> float:
    """Peak of this process's resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    work(*json.loads(sys.argv[1]))
