"""Planning: from the placements of rules or a plan file to a plan by TorchRec's planner.

rules, plan file -> placements -> constraints, ranks -> EmbeddingShardingPlanner -> Plan
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, Proposer, ShardingOption, Stats
from torchrec.distributed.types import CacheParams, ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.sharding.partitioner import RankPartitioner
from stem_torchrec.sharding.placement import (
    AUTO,
    COLUMN_TYPES,
    FUSED_KERNELS,
    FUSED_TYPES,
    Placement,
    check_placements,
)
from stem_torchrec.sharding.plan import Plan, make_plan
from stem_torchrec.sharding.shard import AllTypesSharder
from stem_torchrec.tables import check_plan, mean_tables, reads_weights, table_configs, wrong_mean_types

_MOST_COLUMNS = 1024
"""Columns of a shard in the kernels of all versions of FBGEMM."""


def plan_sharding(
    model: nn.Module,
    *,
    topology: Topology,
    batch_size: int,
    placements: Mapping[str, Placement] | None = None,
    sharder: EmbeddingBagCollectionSharder | None = None,
    whole_rows: bool = False,
    pooling_factors: Mapping[str, float] | None = None,
    proposers: Sequence[Proposer] = (),
) -> Plan:
    """Plans every table of `model`; in a process group all ranks call it, and get rank 0's plan.

    Args:
        model: any module with EmbeddingBagCollections.
        topology: the ranks and their memory.
        batch_size: rows per rank and step.
        placements: by table, what the planner must keep to; see `planner_constraints`.
        sharder: the sharder that will shard by the plan; by default AllTypesSharder.
        whole_rows: see `planner_constraints`.
        pooling_factors: mean number of ids per row, by feature; 1 where not given.
        proposers: how the planner searches; by default as TorchRec does, which takes minutes on a hundred ranks.

    Raises UserError on all ranks if no plan fits, or a placement makes TorchRec pool a table by a wrong mean.
    """
    tables = table_configs(model)
    placements = dict(placements or {})
    constraints = planner_constraints(
        tables,
        topology=topology,
        placements=placements,
        whole_rows=whole_rows,
        pooling_factors=pooling_factors,
        weighted=reads_weights(model),
    )
    chosen = _ChosenOptions()
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        constraints=constraints,
        proposer=list(proposers) or None,
        partitioner=RankPartitioner(placements),
        storage_reservation=FixedPercentageStorageReservation(percentage=0.15),
        stats=chosen,
    )

    def plan() -> Plan:
        try:
            sharding_plan = planner.plan(model, [sharder or AllTypesSharder()])
        except PlannerError as error:
            raise UserError(f"no plan fits {topology.world_size} ranks: {reason_of(error)}") from error
        check_plan(model, sharding_plan)
        if topology.compute_device == "cuda":
            _check_widths(sharding_plan)
        return make_plan(sharding_plan, chosen.options, tables, topology)

    return from_first_rank(plan)


def planner_constraints(
    tables: Sequence[EmbeddingBagConfig],
    *,
    topology: Topology,
    placements: Mapping[str, Placement] | None = None,
    whole_rows: bool = False,
    pooling_factors: Mapping[str, float] | None = None,
    weighted: bool = False,
) -> dict[str, ParameterConstraints]:
    """Constraints that keep TorchRec's planner to the placements; ranks need RankPartitioner as well.

    A table without a placement gets any type but data_parallel, which takes it out of the fused optimizer; on one rank
    it is table_wise. A table that TorchRec itself pools by the mean gets no type under which its mean is wrong.
    On CUDA the planner moves tables that do not fit into GPU memory to the host (UVM).

    Args:
        tables: the tables of all EmbeddingBagCollections.
        topology: the ranks and their memory.
        placements: by table, what the planner must keep to.
        whole_rows: whether to avoid types that cut columns, for an optimizer that couples the elements of a row: each
            column shard would be a row of its own, and learning would depend on the plan.
        pooling_factors: mean number of ids per row, by feature; 1 where not given.
        weighted: whether the collections weight ids.

    Raises UserError for placements that the device, the ranks or the tables do not have.
    """
    placements = placements or {}
    check_placements(placements, device=topology.compute_device, world_size=topology.world_size)
    constraints = {}
    columns, wrong_means = COLUMN_TYPES if whole_rows else (), wrong_mean_types(weighted)
    means = mean_tables(tables)
    for config in tables:
        placement = placements.get(config.name, AUTO)
        cache = placement.cache_load_factor
        constraints[config.name] = ParameterConstraints(
            sharding_types=_types(
                placement,
                topology.world_size,
                avoid=(*columns, *(wrong_means if config.name in means else ())),
            ),
            compute_kernels=_kernels(placement, topology.compute_device),
            min_partition=_column_width(config, placement, topology),
            pooling_factors=[(pooling_factors or {}).get(feature, 1.0) for feature in config.feature_names],
            cache_params=None if cache is None else CacheParams(load_factor=cache),
        )
    return constraints


def _check_widths(plan: ShardingPlan) -> None:
    """Raises UserError for a shard of more columns than FBGEMM's CUDA kernels look up; beyond, some return zeros.

    Source: https://github.com/meta-pytorch/torchrec/issues/3673
    """
    for module in plan.plan.values():
        for table, sharding in module.items():
            shards = sharding.sharding_spec.shards if sharding.sharding_spec is not None else ()
            width = max((shard.shard_sizes[1] for shard in shards), default=0)
            if width > _MOST_COLUMNS:
                raise UserError(
                    f"the table {table} has {width} columns on a rank, but FBGEMM looks up at most {_MOST_COLUMNS} on "
                    "GPUs; choose a smaller --model.embedding-dim, --model.layout split, or column_wise sharding."
                )


class _ChosenOptions(Stats):
    """Keeps the options that the planner chose, with its estimates."""

    def __init__(self) -> None:
        self.options: list[ShardingOption] = []

    def log(self, *, best_plan: list[ShardingOption], **_: Any) -> None:
        self.options = best_plan


def _types(placement: Placement, world_size: int, *, avoid: Sequence[str]) -> list[str]:
    if placement.sharding_type != "auto":
        return [placement.sharding_type]
    if placement.kernel == "dense":
        return ["data_parallel"]
    if world_size == 1:
        return ["table_wise"]
    return [name for name in FUSED_TYPES if name not in avoid]


def _kernels(placement: Placement, device: str) -> list[str]:
    if placement.kernel != "auto":
        return [placement.kernel]
    if placement.sharding_type == "data_parallel":
        return ["dense"]
    return list(FUSED_KERNELS) if device == "cuda" else ["fused"]


def _column_width(config: EmbeddingBagConfig, placement: Placement, topology: Topology) -> int:
    """Width of a column shard: from the number of ranks of the placement, else the narrowest that needs no more shards
    than there are ranks (or hosts). FBGEMM looks up multiples of 4 columns.
    """
    dim, kind = config.embedding_dim, placement.sharding_type
    local = topology.local_world_size
    if placement.ranks and kind in COLUMN_TYPES:
        shards = len(placement.ranks)
        if kind == "grid_shard" and len({rank // local for rank in placement.ranks}) * local == shards:
            shards //= local
        if dim % (4 * shards):
            raise UserError(
                f"{config.name} cannot be cut into {shards} blocks of columns, one per named rank: its {dim} columns "
                "do not divide into equal multiples of 4; name fewer ranks."
            )
        return dim // shards
    max_shards = topology.world_size // local if kind == "grid_shard" else topology.world_size
    max_shards = local if kind == "table_column_wise" else max_shards
    return min((w for w in range(4, dim, 4) if dim % w == 0 and w * max_shards >= dim), default=dim)
