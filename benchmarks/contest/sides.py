"""The sides that train, each built by a function: ours, and two plain ones."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec import EmbeddingBagCollection
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from stem_torchrec.config import (
    DataConfig,
    LoopConfig,
    ShardingConfig,
    ShardingType,
    SparseOptimizerConfig,
    TrainConfig,
)
from stem_torchrec.models.loss import MultiTaskTrain
from stem_torchrec.models.stem import STEM
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import Process
from stem_torchrec.sharding.shard import shard
from stem_torchrec.sharding.topology import topology_here
from stem_torchrec.tables import LocalShard, embedding_bag_configs, groups_of
from stem_torchrec.training.assembly import autocast_forward, build_sharded_model
from stem_torchrec.training.optimizers import apply_sparse_optimizer, build_optimizer

from contest.limits import Build, plan_of_torchrec
from contest.models import with_model
from contest.plain import DenseTables, PlainSTEM, StockSTEM
from contest.problem import Contestant, DensePart, Pipeline, Problem, Side

L2 = 1e-6
"""Factor of the L2 penalty in the published code, which is on whole tables."""

PIPELINES: Mapping[Pipeline, Callable[..., Any]] = {
    "base": TrainPipelineBase,
    "sparse_dist": TrainPipelineSparseDist,
}

COMPILE_MODES: Mapping[DensePart, str] = {"compiled": "default", "CUDA graphs": "reduce-overhead"}
"""Modes of torch.compile."""


def ours(problem: Problem, contestant: Contestant, process: Process) -> Side:
    """This project, assembled as training does it."""
    type_: ShardingType = "table_wise" if contestant.kernel == "fused" else "auto"
    config = TrainConfig(
        data=DataConfig(batch_size=problem.batch_size),
        model=replace(problem.model, layout=contestant.layout),
        sparse=SparseOptimizerConfig(name=contestant.sparse),
        sharding=ShardingConfig(type=type_, kernel=contestant.kernel),
        train=LoopConfig(precision=contestant.precision),
    )
    config = with_model(config, contestant.model, problem.columns.labels)
    _check_managed_memory(problem, contestant, process)
    with _filled_at_once(process):
        model, _ = build_sharded_model(config, problem.columns, process)
    compile_dense_part(model, contestant.dense_part)
    optimizer = build_optimizer(model, sparse=config.sparse, dense=config.dense)
    pipeline = PIPELINES[contestant.pipeline](
        model, optimizer, process.device, custom_model_fwd=autocast_forward(model, config.train.precision, process)
    )
    # The same count as Problem.gemm_flops, which is for STEM only. TorchRec calls the weights of cross layers kernels.
    dense_part = in_backward_optimizer_filter(model.named_parameters())
    matrices = (p for name, p in dense_part if name.endswith("weight") or "_kernels." in name)
    flops = 3 * 2 * problem.batch_size * sum(matrix.numel() for matrix in matrices)
    return _training(pipeline, problem, process, flops, graphs=contestant.dense_part == "CUDA graphs")


def compile_dense_part(model: nn.Module, how: DensePart) -> None:
    """Compiles each layer and tower of STEM when it is first called; does nothing if they are to run as they are."""
    if how == "eager":
        return
    [stem] = [module for module in model.modules() if isinstance(module, STEM)]
    for part in (*stem.layers, *stem.towers.values()):
        part.compile(mode=COMPILE_MODES[how], dynamic=False)


@contextmanager
def _filled_at_once(process: Process) -> Iterator[None]:
    """On a GPU, draws the tables there: training draws them block by block on CPU, in a minute for 10M rows."""

    def fill(piece: LocalShard, config: EmbeddingBagConfig, seed: int) -> None:
        assert config.init_fn is not None
        config.init_fn(piece.weight)

    with patch.object(sys.modules[shard.__module__], "_fill", fill) if process.device.type == "cuda" else nullcontext():
        yield


def _check_managed_memory(problem: Problem, contestant: Contestant, process: Process) -> None:
    """Raises UserError for tables in managed memory that are larger than what the GPU has free: those can hang it."""
    if process.device.type != "cuda" or not contestant.kernel.startswith("fused_uvm"):
        return
    # The state of an optimizer is at most two moments.
    needed, free = 3 * problem.weight_bytes(), torch.cuda.mem_get_info(process.device)[0]
    if needed > free:
        raise UserError(
            f"tables of {needed / 2**30:.1f} GiB in managed memory would be more than the {free / 2**30:.1f} GiB that "
            "the GPU has free; give fewer --rows."
        )


def stock(problem: Problem, contestant: Contestant, process: Process) -> Side:
    """Plain STEM on TorchRec's own modules: one collection, TorchRec's default plan, Adam that is not fused."""
    columns = problem.columns
    groups = groups_of(columns.labels)
    tables = embedding_bag_configs(list(columns.sparse.values()), groups, embedding_dim=problem.model.embedding_dim)
    keys = {group: [f"{name}@{group}/{name}" for name in columns.sparse] for group in groups}
    collection = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    train = MultiTaskTrain(StockSTEM(collection, plain(problem), keys))
    apply_sparse_optimizer(train, SparseOptimizerConfig())
    model = DistributedModelParallel(train, device=process.device, plan=plan_of_torchrec(train, topology_here(process)))
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())), lambda p: torch.optim.Adam(p, 1e-3)
    )
    pipeline = TrainPipelineSparseDist(
        model,
        CombinedOptimizer([("", model.fused_optimizer), ("", dense)]),
        process.device,
        custom_model_fwd=autocast_forward(model, contestant.precision, process),
    )
    return _training(pipeline, problem, process, problem.gemm_flops())


def _training(pipeline: Any, problem: Problem, process: Process, flops: int, *, graphs: bool = False) -> Side:
    batches: Iterator[Batch] = problem.batches(process.rank, pinned=process.device.type == "cuda")

    def step() -> Tensor:
        if graphs:
            # From here on the outputs of the graphs' last replay may be overwritten.
            torch.compiler.cudagraph_mark_step_begin()
        losses, _ = pipeline.progress(batches)
        return losses.sum()

    return Side(step, flops)


def dense(problem: Problem, contestant: Contestant, process: Process) -> Side:
    """Plain PyTorch: nn.Embedding, Adam over all parameters, L2 on whole tables."""
    device = process.device
    groups = groups_of(problem.columns.labels)
    with device:
        tables = DenseTables(groups, problem.features, problem.rows, problem.model)
        net = plain(problem)
    optimizer = torch.optim.Adam([*tables.parameters(), *net.parameters()], lr=1e-3)
    batches = problem.batches(process.rank, pinned=device.type == "cuda")

    def step() -> Tensor:
        batch = next(batches).to(device, non_blocking=True)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=contestant.precision == "bf16"):
            logits = net(tables(batch.sparse_features.values().view(problem.features, -1)))
        loss = binary_cross_entropy_with_logits(logits.float(), batch.labels, reduction="none").mean(dim=0).sum()
        decay = sum(table.square().sum() for table in tables.parameters())
        (loss + L2 * decay).backward()
        optimizer.step()
        return loss.detach()

    return Side(step, problem.gemm_flops())


def plain(problem: Problem) -> PlainSTEM:
    """The dense part of both plain sides."""
    return PlainSTEM(problem.columns.labels, problem.features * problem.model.embedding_dim, problem.model)


SIDES: Mapping[str, Build] = {"ours": ours, "stock": stock, "dense": dense}
