"""Where the tables live: plans for any module that holds EmbeddingBagCollections, and sharding by them."""

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import EnumerableShardingSpec, ParameterSharding, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.errors import UserError
from stem_torchrec.process import from_first_rank

_INIT_ROWS = 4096
"""Rows of a table that one random generator fills."""

_FUSED_TYPES = ("table_wise", "row_wise", "column_wise", "table_column_wise", "table_row_wise", "grid_shard")
"""The sharding types that keep a table's optimizer in the backward pass."""

COLUMN_TYPES = ("column_wise", "table_column_wise", "grid_shard")
"""Those that cut a table by columns."""


class AllTypesSharder(EmbeddingBagCollectionSharder):
    """Offers on CPU the sharding types that TorchRec offers on CUDA, with the row-wise ones among them."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """All seven sharding types, on any device."""
        return super().sharding_types("cuda")


def plan_sharding(
    model: nn.Module,
    *,
    topology: Topology,
    batch_size: int,
    sharding_type: str = "auto",
    kernel: str = "auto",
    whole_rows: bool = False,
) -> ShardingPlan:
    """Plans every table of `model`; collective where a process group runs, then all ranks get rank 0's plan.

    Args:
        model: any module with EmbeddingBagCollections.
        topology: the ranks and their memory.
        batch_size: rows per rank and step.
        sharding_type: one type for all tables. auto lets the planner choose for each table among all but
            data_parallel, which takes a table out of the fused optimizer; on one rank it is table_wise.
        kernel: fused, or dense, which TorchRec has for data_parallel tables only; auto is the one that fits the type.
        whole_rows: keeps auto from types that cut columns, as an optimizer with state per row needs: each column
            shard would keep a state of its own, and learning would depend on the plan.

    Raises UserError where no plan fits, on all ranks.
    """
    if kernel == "dense" and sharding_type == "auto":
        sharding_type = "data_parallel"
    if sharding_type == "auto" and topology.world_size == 1:
        sharding_type = "table_wise"
    fits = "dense" if sharding_type == "data_parallel" else "fused"
    if kernel not in ("auto", fits):
        raise UserError(f"--sharding.kernel {kernel} does not serve {sharding_type} tables; they need {fits}.")
    types = [name for name in _FUSED_TYPES if not (whole_rows and name in COLUMN_TYPES)]
    constraints = {
        config.name: ParameterConstraints(
            sharding_types=types if sharding_type == "auto" else [sharding_type],
            compute_kernels=[fits],
            min_partition=_column_width(config.embedding_dim, topology.world_size),
        )
        for config in table_configs(model)
    }
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(percentage=0.15),
    )

    def plan() -> ShardingPlan:
        try:
            return planner.plan(model, [AllTypesSharder()])
        except PlannerError as error:
            reason = " ".join(str(error).split())
            ranks = topology.world_size
            raise UserError(f"no plan with --sharding.type {sharding_type} fits {ranks} ranks: {reason}") from error

    return from_first_rank(plan)


def shard(model: nn.Module, plan: ShardingPlan, *, device: torch.device, seed: int) -> DistributedModelParallel:
    """Shards the tables of `model` by `plan`, with the same initial weights for every plan and world size."""
    configs = {config.name: config for config in table_configs(model)}
    sharded = DistributedModelParallel(model, device=device, plan=plan, sharders=[AllTypesSharder()])
    for _, module in sharded_collections(sharded):
        for piece in local_shards(module):
            _fill(piece, configs[piece.table], seed)
    return sharded


def sharded_collections(model: nn.Module) -> Iterator[tuple[str, ShardedEmbeddingBagCollection]]:
    """The sharded collections in `model`, by name."""
    for name, module in model.named_modules():
        if isinstance(module, ShardedEmbeddingBagCollection):
            yield name, module


@dataclass(frozen=True)
class LocalShard:
    """The part of a table that this rank holds."""

    table: str
    weight: Tensor
    row: int
    """Row of the table that the shard starts with."""
    column: int
    """Column of the table that the shard starts with."""


def local_shards(module: ShardedEmbeddingBagCollection) -> Iterator[LocalShard]:
    """This rank's parts of the tables of a sharded collection; data_parallel tables are whole."""
    for key, weight in module.state_dict().items():
        table = key.removeprefix("embedding_bags.").removesuffix(".weight")
        if isinstance(weight, ShardedTensor):
            for piece in weight.local_shards():
                row, column = piece.metadata.shard_offsets
                yield LocalShard(table, piece.tensor, row, column)
        else:
            yield LocalShard(table, weight, 0, 0)


def table_configs(model: nn.Module) -> list[EmbeddingBagConfig]:
    """The tables of all EmbeddingBagCollections in `model`."""
    collections = (module for module in model.modules() if isinstance(module, EmbeddingBagCollection))
    return [config for collection in collections for config in collection.embedding_bag_configs()]


def format_plan(plan: ShardingPlan, configs: Sequence[EmbeddingBagConfig], world_size: int) -> str:
    """The plan as a table: table, rows, dim, type, kernel, ranks and MiB of weights on the fullest rank."""
    rows = []
    per_rank = [0.0] * world_size
    for config, sharding in _tables(plan, configs):
        mib = _mib_per_rank(config, sharding, world_size)
        per_rank = [total + more for total, more in zip(per_rank, mib, strict=True)]
        ranks = "all" if sharding.sharding_spec is None else ",".join(map(str, sharding.ranks or []))
        how = (sharding.sharding_type, sharding.compute_kernel, ranks, max(mib))
        rows.append([config.name, config.num_embeddings, config.embedding_dim, *how])
    rows.append(["total", sum(config.num_embeddings for config in configs), "", "", "", "", max(per_rank)])
    headers = ["table", "rows", "dim", "type", "kernel", "ranks", "MiB per rank"]
    return tabulate(rows, headers, floatfmt=".2f", intfmt=",")


def plan_to_json(plan: ShardingPlan, configs: Sequence[EmbeddingBagConfig], world_size: int) -> str:
    """The plan as JSON: for each table its size, sharding type, kernel and ranks."""
    tables = {
        config.name: {
            "rows": config.num_embeddings,
            "dim": config.embedding_dim,
            "sharding_type": sharding.sharding_type,
            "compute_kernel": sharding.compute_kernel,
            "ranks": sharding.ranks,
        }
        for config, sharding in _tables(plan, configs)
    }
    return json.dumps({"world_size": world_size, "tables": tables}, indent=2) + "\n"


def _column_width(embedding_dim: int, world_size: int) -> int:
    """Narrowest columns that FBGEMM can look up (multiples of 4) without more column shards than ranks."""
    widths = [w for w in range(4, embedding_dim, 4) if embedding_dim % w == 0 and w * world_size >= embedding_dim]
    return min(widths, default=embedding_dim)


def _tables(
    plan: ShardingPlan, configs: Sequence[EmbeddingBagConfig]
) -> Iterator[tuple[EmbeddingBagConfig, ParameterSharding]]:
    shardings = {name: sharding for module in plan.plan.values() for name, sharding in module.items()}
    for config in configs:
        yield config, shardings[config.name]


def _mib_per_rank(config: EmbeddingBagConfig, sharding: ParameterSharding, world_size: int) -> list[float]:
    if not isinstance(sharding.sharding_spec, EnumerableShardingSpec):
        return [config.num_embeddings * config.embedding_dim * 4 / 2**20] * world_size
    mib = [0.0] * world_size
    for piece in sharding.sharding_spec.shards:
        mib[piece.placement.rank()] += piece.shard_sizes[0] * piece.shard_sizes[1] * 4 / 2**20
    return mib


def _fill(piece: LocalShard, config: EmbeddingBagConfig, seed: int) -> None:
    """Fills a shard with its part of a table that is drawn block of rows by block of rows, whoever holds them."""
    assert config.init_fn is not None
    stop = piece.row + piece.weight.shape[0]
    for block in range(piece.row // _INIT_ROWS, -(-stop // _INIT_ROWS)):
        first, last = block * _INIT_ROWS, min((block + 1) * _INIT_ROWS, config.num_embeddings)
        values = torch.empty(last - first, config.embedding_dim)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(f"{seed} {config.name} {block}".encode()))
            config.init_fn(values)
        low, high = max(first, piece.row), min(last, stop)
        part = values[low - first : high - first, piece.column : piece.column + piece.weight.shape[1]]
        piece.weight[low - piece.row : high - piece.row].copy_(part)
