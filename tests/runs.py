"""Small sharded runs, for tests that look at the tensors of each rank."""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer

from stem_torchrec.checkpoints.folder import Progress
from stem_torchrec.config import DataConfig, LoopConfig, ShardingConfig, SparseOptimizerConfig, TrainConfig
from stem_torchrec.data.files import Columns
from stem_torchrec.data.label_counts import LabelCounter
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.models.table import table_choice_of
from stem_torchrec.runtime.process import Process
from stem_torchrec.tables import local_shards, sharded_collections, split_columns, table_groups
from stem_torchrec.training.assembly import build_pipeline, build_sharded_model
from stem_torchrec.training.optimizers import build_optimizer

from reference import COLUMNS, TABLES, random_batch

ROWS = 12
"""Rows of a global batch, which are split among the ranks."""
MODEL = STEMOptions(
    embedding_dim=8,
    num_layers=2,
    num_shared_experts=2,
    num_task_experts=1,
    expert_hidden=(16, 8),
    gate_hidden=(8,),
    tower_hidden=(8,),
    embedding_std=0.5,  # Large enough that tables train from the first step on.
)


def config_of(
    optimizer: str, sharding_type: str, *, model: STEMOptions = MODEL, precision: str = "fp32", **sparse: Any
) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(batch_size=ROWS),
        model=model,
        sparse=SparseOptimizerConfig(optimizer, **{"learning_rate": 0.1, **sparse}),
        sharding=ShardingConfig(type=sharding_type),
        train=LoopConfig(precision=precision),
        seed=1,
    )


def this_process() -> Process:
    """On the GPU if NCCL joins the ranks, as `join_process_group` chooses it, and on CPU otherwise."""
    local_world_size = int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cpu")
    if dist.get_backend() == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    return Process(dist.get_rank(), dist.get_world_size(), local_world_size, device)


@dataclass
class Run:
    """A model with its optimizers under the pipeline, built as `train` builds them."""

    config: TrainConfig
    columns: Columns
    model: DistributedModelParallel
    optimizer: CombinedOptimizer
    pipeline: TrainPipelineSparseDist
    counter: LabelCounter

    @classmethod
    def build(cls, config: TrainConfig, columns: Columns = COLUMNS) -> "Run":
        process = this_process()
        model, _ = build_sharded_model(config, columns, process)
        optimizer = build_optimizer(model, sparse=config.sparse, dense=config.dense, train=config.train)
        pipeline = build_pipeline(model, optimizer, config, process)
        return cls(config, columns, model, optimizer, pipeline, LabelCounter())

    def train(self, batches: Iterable[Batch]) -> list[tuple[Tensor, Tensor]]:
        """Makes a step on each batch; returns its losses (T,) and logits (B, T)."""
        batches = list(batches)
        iterator = self.counter.counted(batches)
        return [self.pipeline.progress(iterator) for _ in batches]

    def weights(self) -> dict[str, Tensor]:
        """Every weight by its name in the unsharded model of the split layout; whole tables, on every rank, on CPU."""
        dense = {
            name.removeprefix("model."): p.detach().to("cpu", copy=True)
            for name, p in self.model.state_dict().items()
            if TABLES not in name
        }
        pieces = [
            (piece.table, piece.row, piece.column, piece.weight.to("cpu", copy=True))
            for _, module in sharded_collections(self.model)
            for piece in local_shards(module)
        ]
        gathered: list[list] = [[]] * dist.get_world_size()
        dist.all_gather_object(gathered, pieces)
        tables = {}
        for packed, row, column, piece in itertools.chain(*gathered):
            for table, left, weight in self.parts(packed, column, piece):
                size = self.size_of(table)
                whole = tables.setdefault(f"{TABLES}.{table}.weight", torch.full(size, torch.nan))
                whole[row : row + weight.shape[0], left : left + weight.shape[1]] = weight
        return dense | tables

    def table_bits(self) -> dict[str, list[Tensor]]:
        """This rank's weights and optimizer states of each table of the split layout."""
        bits: dict[str, list[Tensor]] = {}
        for _, module in sharded_collections(self.model):
            for piece in local_shards(module):
                for table, _, weight in self.parts(piece.table, piece.column, piece.weight):
                    bits.setdefault(table, []).append(weight.clone())
        for name, states in self.optimizer.state_dict()["state"].items():
            if TABLES in name:
                packed = name.rpartition("embedding_bags.")[2].removesuffix(".weight")
                for key, value in states.items():
                    # Counts the steps, which only a decaying learning rate reads.
                    if key != "step":
                        shards = [(value, (0, 0))]
                        if isinstance(value, ShardedTensor):
                            shards = [(shard.tensor, shard.metadata.shard_offsets) for shard in value.local_shards()]
                        for tensor, offsets in shards:
                            # A row-wise state belongs to the whole table.
                            parts = (
                                self.parts(packed, offsets[1], tensor) if tensor.dim() > 1 else [(packed, 0, tensor)]
                            )
                            for table, _, part in parts:
                                bits.setdefault(table, []).append(part.clone())
        return bits

    def dense_bits(self) -> dict[str, list[Tensor]]:
        """Copies of each dense parameter and its optimizer states: steps and moments."""
        states = self.optimizer.state_dict()["state"]
        return {
            name: [parameter.detach().clone(), *(state.clone() for state in states[name].values())]
            for name, parameter in self.model.named_parameters()
            if TABLES not in name
        }

    def size_of(self, table: str) -> tuple[int, int]:
        """Rows and columns of a group of a table."""
        groups, _, name = table.partition("/")
        feature, choice = self.columns.sparse[name], table_choice_of(self.config.model)
        width = choice.width(groups.split("+")[0], name, feature.embedding_dim or self.config.model.embedding_dim)
        return feature.num_embeddings, width

    def parts(self, table: str, column: int, piece: Tensor) -> Iterator[tuple[str, int, Tensor]]:
        """The parts of a piece by table of the split layout: the table, its first column in the part, and the part."""
        for name, columns in split_columns(table, self.size_of(table)[1] * len(table_groups(table))).items():
            left, right = max(columns.start, column), min(columns.stop, column + piece.shape[1])
            if left < right:
                yield name, left - columns.start, piece[:, left - column : right - column]


def batches_of_ranks(steps: int, world_size: int, *, missing: float = 0.0) -> list[list[Batch]]:
    """Batches by step and rank; the global batch of a step is the same for each number of ranks."""
    rows = ROWS // world_size
    return [
        [
            random_batch(step, rows=ROWS, missing=missing, part=slice(r * rows, r * rows + rows))
            for r in range(world_size)
        ]
        for step in range(steps)
    ]


def with_labels_of(task: int | None, batches: Iterable[Batch], columns: Columns = COLUMNS) -> list[Batch]:
    """The batches without the labels of the other tasks, or without any."""
    kept = torch.arange(len(columns.labels)) == (-1 if task is None else task)
    return [dataclasses.replace(batch, labels=batch.labels.where(kept, torch.nan)) for batch in batches]


def of_this_rank(batches: list[list[Batch]]) -> list[Batch]:
    """This rank's batches by step, of the batches by step and rank."""
    return [ranks[dist.get_rank()] for ranks in batches]


def progress_after(step: int) -> Progress:
    """The progress of a run on one rank that has made `step` steps and no evaluation."""
    return Progress(
        step=step,
        epoch=0,
        left=[[[(step, 100)]]],
        evaluate=False,
        best=0.5,
        waited=0,
        world_size=1,
        config={},
        schema={"sparse_features": [], "labels": []},
        row_groups="",
    )
