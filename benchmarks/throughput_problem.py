"""What all contestants train: random batches of the reference model's shape, and how many operations a step takes."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Literal

import torch
from torch import nn
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.config import ModelConfig
from stem_torchrec.data.files import Columns

Precision = Literal["fp32", "bf16"]

_BATCHES = 16
"""Batches that are drawn, and then come again and again."""


@dataclass(frozen=True)
class Problem:
    """A batch has one id in each feature, drawn evenly from all rows: the hardest for caches."""

    rows: int = 1000
    """Rows of each feature's tables."""
    batch_size: int = 4096
    """Rows of a batch, per rank."""
    features: int = 8
    """Sparse features."""
    tasks: int = 2
    """Tasks."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The reference model: D=16, 8 shared experts and 1 for each task, of [512, 512, 512]."""

    @property
    def columns(self) -> Columns:
        """The columns of a log that has such batches."""
        return Columns(
            sparse={f"feature_{i}": self.rows for i in range(self.features)},
            dense=(),
            labels=tuple(f"task_{i}" for i in range(self.tasks)),
            group=None,
        )

    def with_rows(self, rows: int) -> "Problem":
        """The same with other tables."""
        return replace(self, rows=rows)

    def batches(self, rank: int) -> Iterator[Batch]:
        """Batches without end, others on every rank."""
        generator = torch.Generator().manual_seed(rank)
        ids = self.features * self.batch_size
        drawn = [
            Batch(
                dense_features=torch.empty(self.batch_size, 0),
                sparse_features=KeyedJaggedTensor(
                    list(self.columns.sparse),
                    torch.randint(self.rows, (ids,), generator=generator),
                    lengths=torch.ones(ids, dtype=torch.int32),
                ),
                labels=torch.randint(2, (self.batch_size, self.tasks), generator=generator).float(),
            )
            for _ in range(_BATCHES)
        ]
        return cycle(drawn)

    def gemm_flops(self, dense: nn.Module) -> int:
        """Floating-point operations of a step's matrix products with weights: forward and two products backward.

        Each weight of the dense part takes part in a multiplication and an addition for each row in each of the three.
        Biases, ReLUs, mixtures, lookups and optimizers are not counted, so their time lowers the share of the peak.
        """
        weights = sum(p.numel() for name, p in dense.named_parameters() if name.endswith("weight"))
        return 3 * 2 * self.batch_size * weights
