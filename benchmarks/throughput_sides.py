"""The contestants, each as a function that makes one training step: ours, two plain ones, and matrix products alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec import EmbeddingBagCollection
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from stem_torchrec.assembly import build_pipeline, build_sharded_model
from stem_torchrec.config import DataConfig, LoopConfig, ShardingConfig, TrainConfig
from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.models.train import MultiTaskTrain
from stem_torchrec.optim import apply_sparse_optimizer, build_optimizer
from stem_torchrec.process import Process
from stem_torchrec.tables import embedding_bag_configs

from throughput_plain import DenseTables, PlainSTEM, StockSTEM
from throughput_problem import Precision, Problem

Step = Callable[[], Tensor | None]
"""Makes a step; returns the summed loss, (), if there is one."""

L2 = 1e-6
"""Of the published code, on the whole tables."""


@dataclass(frozen=True)
class Side:
    """A contestant that has been built."""

    step: Step
    flops: int
    """Of the matrix products in a step, on one rank."""


def ours(problem: Problem, precision: Precision, process: Process) -> Side:
    """This project, assembled as training assembles it."""
    config = _config(problem, precision)
    model, _ = build_sharded_model(config, problem.columns, process)
    optimizer = build_optimizer(model, sparse=config.sparse, dense=config.dense)
    pipeline = build_pipeline(model, optimizer, config, process)
    batches = problem.batches(process.rank)
    return Side(lambda: pipeline.progress(batches)[0].sum(), _flops(problem))


def stock(problem: Problem, precision: Precision, process: Process) -> Side:
    """Plain STEM on TorchRec's own modules: one collection, its own plan, Adam not fused."""
    config, columns = _config(problem, precision), problem.columns
    groups = (*columns.labels, "shared")
    features = [SparseFeature(name, rows) for name, rows in columns.sparse.items()]
    tables = embedding_bag_configs(features, groups, embedding_dim=problem.model.embedding_dim)
    keys = {group: [f"{name}@{group}/{name}" for name in columns.sparse] for group in groups}
    collection = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    train = MultiTaskTrain(StockSTEM(collection, _plain(problem), keys))
    apply_sparse_optimizer(train, config.sparse)
    model = DistributedModelParallel(train, device=process.device)
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())), lambda p: torch.optim.Adam(p, 1e-3)
    )

    def forward(batch: object) -> object:
        with torch.autocast(process.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return model(batch)

    optimizer = CombinedOptimizer([("", model.fused_optimizer), ("", dense)])
    pipeline = TrainPipelineSparseDist(model, optimizer, process.device, custom_model_fwd=forward)
    batches = problem.batches(process.rank)
    return Side(lambda: pipeline.progress(batches)[0].sum(), _flops(problem))


def dense(problem: Problem, precision: Precision, process: Process) -> Side:
    """Plain PyTorch: nn.Embedding, Adam over all parameters, L2 on whole tables."""
    groups = (*problem.columns.labels, "shared")
    tables = DenseTables(groups, problem.features, problem.rows, problem.model)
    net = _plain(problem)
    optimizer = torch.optim.Adam([*tables.parameters(), *net.parameters()], lr=1e-3)
    batches = problem.batches(process.rank)

    def step() -> Tensor:
        batch = next(batches)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = net(tables(batch.sparse_features.values().view(problem.features, -1)))
        loss = binary_cross_entropy_with_logits(logits.float(), batch.labels, reduction="none").mean(dim=0).sum()
        decay = sum(table.square().sum() for table in tables.parameters())
        (loss + L2 * decay).backward()
        optimizer.step()
        return loss.detach()

    return Side(step, _flops(problem))


def gemm(problem: Problem, precision: Precision, process: Process) -> Side:
    """Matrix products alone: of the shapes of the experts' hidden layers, and a square one, the fastest here."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    width, experts = problem.model.expert_hidden[-1], problem.model.num_shared_experts
    shapes = [(1, problem.batch_size, width, width), (experts, problem.batch_size, width, width), (1, 4096, 4096, 4096)]
    best: tuple[float, Side] | None = None
    for batch, rows, inner, columns in shapes:
        left, right = torch.randn(batch, rows, inner, dtype=dtype), torch.randn(batch, inner, columns, dtype=dtype)
        out = torch.empty(batch, rows, columns, dtype=dtype)
        flops = 2 * batch * rows * inner * columns
        # As much as a step of the model.
        times = max(1, round(_flops(problem) / flops))

        def step(left: Tensor = left, right: Tensor = right, out: Tensor = out, times: int = times) -> None:
            for _ in range(times):
                torch.bmm(left, right, out=out)

        step()
        start = time.perf_counter()
        step()
        rate = times * flops / (time.perf_counter() - start)
        if best is None or rate > best[0]:
            best = rate, Side(step, times * flops)
    assert best is not None
    return best[1]


SIDES: dict[str, Callable[[Problem, Precision, Process], Side]] = {
    "ours": ours,
    "stock": stock,
    "dense": dense,
    "gemm": gemm,
}


def _config(problem: Problem, precision: Precision) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(batch_size=problem.batch_size),
        model=replace(problem.model),
        sharding=ShardingConfig(type="table_wise"),
        train=LoopConfig(precision=precision),
    )


def _plain(problem: Problem) -> PlainSTEM:
    return PlainSTEM(problem.columns.labels, problem.features * problem.model.embedding_dim, problem.model)


def _flops(problem: Problem) -> int:
    return problem.gemm_flops(_plain(problem))
