"""Limits of the machine: matrix products alone, copies alone, and the tables without the model."""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ShardingPlan

from stem_torchrec.config import SparseOptimizerConfig
from stem_torchrec.runtime.process import Process
from stem_torchrec.sharding.topology import topology_here
from stem_torchrec.tables import embedding_bag_configs, groups_of, table_configs
from stem_torchrec.training.optimizers import apply_sparse_optimizer

from contest.problem import BATCHES, Contestant, Problem, Side

_COPIED = 256 * 2**20
"""Bytes of the tensor that `copy` copies; it is larger than the caches."""

Build = Callable[[Problem, Contestant, Process], Side]
"""Builds a contestant on one rank."""


def gemm(problem: Problem, contestant: Contestant, process: Process) -> Side:
    """The fastest of a square product and the products of the experts' hidden layers."""
    width, experts = problem.model.expert_hidden[-1], problem.model.num_shared_experts
    rows = problem.batch_size
    shapes = [(1, rows, width, width), (experts, rows, width, width), (1, 4096, 4096, 4096)]
    if process.device.type == "cuda":
        shapes.append((1, 8192, 8192, 8192))  # Its tensor cores are busier with a larger one.
    sides = [_repeated(shape, problem.gemm_flops(), contestant, process) for shape in shapes]

    def rate(side: Side) -> float:
        start = time.perf_counter()
        _wait(side, process)
        return side.work / (time.perf_counter() - start)

    for side in sides:
        _wait(side, process)
    return max(sides, key=rate)


def products(problem: Problem, contestant: Contestant, process: Process) -> Side:
    """The matrix products with weights of a step, in its order and shapes, into memory that is already allocated."""
    layers = [_layer(number, problem.batch_size, shape, contestant, process) for number, *shape in problem.layers()]

    def step() -> None:
        for x, weight, y, _, _ in layers:
            torch.bmm(x, weight, out=y)
        for x, weight, y, grad_x, grad_weight in reversed(layers):
            torch.bmm(y, weight.mT, out=grad_x)
            torch.bmm(x.mT, y, out=grad_weight)

    return Side(step, problem.gemm_flops())


def copy(problem: Problem, contestant: Contestant, process: Process) -> Side:
    """Reads and writes a large tensor in order, which measures the bandwidth of the memory."""
    source = torch.zeros(_COPIED // 4, device=process.device)
    target = torch.empty_like(source)

    def step() -> None:
        target.copy_(source)

    return Side(step, 2 * _COPIED)


def tables(problem: Problem, contestant: Contestant, process: Process) -> Side:
    """The tables alone: lookup of ids that are on the device, and backward with the fused optimizer, on one rank."""
    features = list(problem.columns.sparse.values())
    configs = embedding_bag_configs(
        features, groups_of(problem.columns.labels), embedding_dim=problem.model.embedding_dim
    )
    collection = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
    apply_sparse_optimizer(collection, SparseOptimizerConfig())
    model = DistributedModelParallel(
        collection, device=process.device, plan=plan_of_torchrec(collection, topology_here(process))
    )
    batches = problem.batches(process.rank)
    ids = cycle([next(batches).sparse_features.to(process.device) for _ in range(BATCHES)])
    width = sum(config.embedding_dim for config in configs)
    gradient = torch.ones(problem.batch_size, width, device=process.device)

    def step() -> None:
        model(next(ids)).values().backward(gradient)

    return Side(step, problem.table_bytes())


def plan_of_torchrec(model: nn.Module, topology: Topology) -> ShardingPlan | None:
    """TorchRec's own plan, on a GPU without the kernels whose tables are in managed memory; None, its default, on CPU.

    All ranks call it. On a GPU that is too small for the tables the planner raises PlannerError.
    """
    if topology.compute_device != "cuda":
        return None
    constraints = {
        config.name: ParameterConstraints(compute_kernels=["fused", "dense"]) for config in table_configs(model)
    }
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    return planner.collective_plan(model, [EmbeddingBagCollectionSharder()], dist.group.WORLD)


LIMITS: Mapping[str, Build] = {"gemm": gemm, "products": products, "copy": copy, "tables": tables}


def _repeated(shape: tuple[int, int, int, int], flops: int, contestant: Contestant, process: Process) -> Side:
    """Repeats a product of `shape` (batch, rows, inner, columns) until it has made about `flops` operations."""
    batch, rows, inner, columns = shape
    left, right, out = (
        torch.randn(batch, *size, dtype=_dtype(contestant), device=process.device)
        for size in ((rows, inner), (inner, columns), (rows, columns))
    )
    once = 2 * batch * rows * inner * columns
    times = max(1, round(flops / once))

    def step() -> None:
        for _ in range(times):
            torch.bmm(left, right, out=out)

    return Side(step, times * once)


def _layer(
    number: int, rows: int, shape: Sequence[int], contestant: Contestant, process: Process
) -> tuple[Tensor, ...]:
    """Input, weight and output of equal layers side by side, and the gradients of input and weight."""
    wide, out = shape
    sizes = [(rows, wide), (wide, out), (rows, out), (rows, wide), (wide, out)]
    return tuple(torch.randn(number, *size, dtype=_dtype(contestant), device=process.device) for size in sizes)


def _dtype(contestant: Contestant) -> torch.dtype:
    return torch.bfloat16 if contestant.precision == "bf16" else torch.float32


def _wait(side: Side, process: Process) -> None:
    """Makes a step and waits until the device has finished it."""
    side.step()
    if process.device.type == "cuda":
        torch.cuda.synchronize()
