"""What contestants train: random batches for the reference model, and the number of operations in a step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle, pairwise
from typing import Literal

import torch
from torch import Tensor
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.config import Kernel, Layout, SparseOptimizerName
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.models.stem import STEMOptions

Precision = Literal["fp32", "tf32", "bf16"]
Pipeline = Literal["base", "sparse_dist"]
"""TorchRec's prefetch pipeline is not among them: without CacheParams(prefetch_pipeline=True) TorchRec logs that it can
cause wrong results, and https://github.com/meta-pytorch/torchrec/pull/4191 describes a race in 1.6 to 1.8."""
DensePart = Literal["eager", "compiled", "CUDA graphs"]
"""How the layers and towers of ours run: as they are, under torch.compile, or under it with CUDA graphs."""
MALLOC = {True: "malloc kept", False: "malloc as it is"}
"""Whether a process keeps freed memory, in the words of the report."""

BATCHES = 16
"""Number of batches that are drawn; they are then repeated."""


@dataclass(frozen=True)
class Problem:
    """The model and its batches: one id per feature, drawn evenly from all rows, which is the hardest for caches."""

    rows: int = 1000
    """Rows of each feature's tables."""
    batch_size: int = 4096
    """Rows of a batch, per rank."""
    features: int = 8
    """Number of sparse features."""
    tasks: int = 2
    """Number of tasks."""
    model: STEMOptions = field(default_factory=STEMOptions)
    """The reference model: D=16, 8 shared experts and 1 for each task, of [512, 512, 512]."""

    @property
    def columns(self) -> Columns:
        """The columns of a log with such batches."""
        return Columns(
            sparse={name: SparseFeature(name, self.rows) for name in (f"feature_{i}" for i in range(self.features))},
            dense=(),
            labels=tuple(f"task_{i}" for i in range(self.tasks)),
            group=None,
        )

    def of(self, contestant: "Contestant") -> "Problem":
        """The same problem with tables and batches of the sizes that a contestant trains."""
        return replace(self, rows=contestant.rows, batch_size=contestant.batch_size)

    def batches(self, rank: int, *, pinned: bool = False) -> Iterator[Batch]:
        """Yields batches without end; each rank has its own.

        Args:
            rank: whose batches.
            pinned: whether they are in pinned memory, from which a GPU copies while the host goes on.
        """
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
            for _ in range(BATCHES)
        ]
        return cycle([batch.pin_memory() for batch in drawn] if pinned else drawn)

    def layers(self) -> list[tuple[int, int, int]]:
        """The layers of the dense part: how many equal ones read the same input, its width, and that of the output."""
        model, width = self.model, self.features * self.model.embedding_dim
        experts = [*[model.num_task_experts] * self.tasks, model.num_shared_experts]
        mlps = [(number, [width, *model.expert_hidden]) for number in experts]
        mlps += [(1, [width, *model.gate_hidden, sum(experts)])] * self.tasks
        mlps += [(1, [model.expert_hidden[-1], *model.tower_hidden, 1])] * self.tasks
        return [(number, *shape) for number, widths in mlps for shape in pairwise(widths)]

    def gemm_flops(self) -> int:
        """Floating-point operations of the matrix products with weights in a step: one forward, two backward.

        In each of the three, each weight of the dense part takes a multiplication and an addition per row. Biases,
        ReLUs, mixtures, lookups and optimizers are not counted, so their time lowers the share of the peak.
        """
        return 3 * 2 * self.batch_size * sum(number * wide * out for number, wide, out in self.layers())

    def weight_bytes(self) -> int:
        """Bytes of all tables' weights."""
        return 4 * self.rows * self.features * (self.tasks + 1) * self.model.embedding_dim

    def table_bytes(self) -> int:
        """Bytes that a step has to move to and from memory for the tables, if it touches each number once.

        For each id, forward reads a row and writes it into the output; backward reads its gradient, and reads and
        writes the row and its number in the row-wise optimizer. All numbers have four bytes.
        """
        lookups = self.batch_size * self.features * (self.tasks + 1)
        return 4 * lookups * (5 * self.model.embedding_dim + 2)


@dataclass(frozen=True)
class Contestant:
    """Which side makes steps, with which options, and on how many ranks."""

    side: str
    """ours, stock, dense, or a limit of the machine: gemm, products, copy, tables."""
    precision: Precision = "fp32"
    rows: int = 1000
    """Rows of each feature's tables."""
    batch_size: int = 4096
    """Rows of a batch, per rank."""
    ranks: int = 1
    """Number of processes."""
    one_core_each: bool = False
    """Whether each rank runs on a core of its own; else the ranks share all cores."""
    keeps_memory: bool = True
    """Whether the process keeps freed memory, as this project does on CPU."""
    pipeline: Pipeline = "sparse_dist"
    kernel: Kernel = "fused"
    """Not auto: on a GPU the planner would then move tables that do not fit into managed memory, and not refuse."""
    sparse: SparseOptimizerName = "rowwise_adagrad"
    layout: Layout = "split"
    dense_part: DensePart = "eager"
    model: str = "stem"
    """Model of ours, by its name in `contest.models`, with the options that the name stands for."""

    @property
    def name(self) -> str:
        """The name in the report."""
        parts = [f"{self.side} {self.precision}" if self.side not in ("copy", "tables") else self.side]
        if self.ranks > 1 or self.one_core_each:
            parts.append(f"{self.ranks} rank{'s' * (self.ranks > 1)}{' of one core' * self.one_core_each}")
        if not self.keeps_memory:
            parts.append(MALLOC[False])
        usual = Contestant(self.side)
        parts += [
            getattr(self, option)
            for option in ("pipeline", "kernel", "sparse", "layout", "dense_part", "model")
            if getattr(self, option) != getattr(usual, option)
        ]
        return ", ".join(parts)


@dataclass(frozen=True)
class Side:
    """A contestant that has been built, on one rank."""

    step: Callable[[], Tensor | None]
    """Makes a step without waiting for the device; returns the summed loss, of shape (), or None for a limit."""
    work: int
    """What a step takes: operations in matrix products, or bytes to and from memory (copy, tables)."""
