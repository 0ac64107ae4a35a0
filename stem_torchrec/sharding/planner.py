"""Plans: which ranks hold which part of which table."""

import json
from collections.abc import Iterator, Sequence

from tabulate import tabulate
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import EnumerableShardingSpec, ParameterSharding, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from stem_torchrec.errors import UserError
from stem_torchrec.process import from_first_rank
from stem_torchrec.sharding.shard import AllTypesSharder, table_configs

_FUSED_TYPES = ("table_wise", "row_wise", "column_wise", "table_column_wise", "table_row_wise", "grid_shard")
"""The sharding types that keep a table's optimizer in the backward pass."""

COLUMN_TYPES = ("column_wise", "table_column_wise", "grid_shard")
"""Those that cut a table by columns."""


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
