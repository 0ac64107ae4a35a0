"""Starts a model from another one: from its tables, and from the plan that shards them."""

from collections.abc import Mapping

from torch import nn
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan

from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.internals.pytorch import EnumerableShardingSpec, ShardMetadata
from stem_torchrec.sharding.placement import Placement, some
from stem_torchrec.transfer.weight_source import Source, match_tables, open_source, read_into, weights_by_name


def warm_start(model: nn.Module, source: Source, tables: Mapping[str, str]) -> None:
    """Fills tables of `model` with those of another model, bit for bit; everything else stays as it is.

    All ranks call it, between sharding and the first batch. Optimizer states are not copied.

    Args:
        model: any module, sharded by any plan or not.
        source: a run folder, a checkpoint folder or a state dict, of any ranks and plan.
        tables: name of each table to fill to the name of the table in the source. One of these may fill several.

    Raises UserError, before it changes a weight, for a table that is missing or has another size.

    Example::

        warm_start(model, "dlrm/checkpoint", {"shared/uid": "t_uid", "like/uid": "t_uid"})
    """
    weight_source, weights = open_source(source), weights_by_name(model)
    targets = [
        match_tables(weight_source, weights, table=table, source_table=source_table)
        for table, source_table in tables.items()
    ]
    read_into(model, weight_source, targets)


def placements_like(plan: ShardingPlan, tables: Mapping[str, str]) -> dict[str, Placement]:
    """Placements that shard tables in the way that `plan` shards others; `plan_sharding` takes them.

    Args:
        plan: a plan by TorchRec, such as `DistributedModelParallel.plan`.
        tables: name of each table to the name of the table in the plan whose sharding it gets.

    Raises UserError for a table that is missing from the plan, or is in several of its modules.

    Example::

        placements = placements_like(dlrm.plan, {"shared/uid": "t_uid"})
        plan_sharding(stem, topology=topology, batch_size=4096, placements=placements)
    """
    planned = [
        item
        for module in plan.plan.values()
        if isinstance(module, EmbeddingModuleShardingPlan)
        for item in module.items()
    ]
    placements = {}
    for table, name in tables.items():
        shardings = [sharding for planned_table, sharding in planned if planned_table == name]
        if len(shardings) > 1:
            raise UserError(f"the plan has a table {name!r} in {len(shardings)} modules; give a plan of one of them.")
        if not shardings:
            names = [planned_table for planned_table, _ in planned]
            raise UserError(f"the plan has no table {name!r}, only {some(names)}{nearest(name, names)}")
        placements[table] = _placement(shardings[0])
    return placements


def _placement(sharding: ParameterSharding) -> Placement:
    ranks: tuple[int, ...] = ()
    if isinstance(sharding.sharding_spec, EnumerableShardingSpec) and sharding.sharding_type != "row_wise":
        # By column, then by row: the order of shards in a Placement.
        shards = sorted(sharding.sharding_spec.shards, key=lambda shard: shard.shard_offsets[::-1])
        ranks = tuple(_rank(shard) for shard in shards)
    cache = sharding.cache_params.load_factor if sharding.cache_params else None
    # The kernel `dense` only means that its optimizer is not part of the backward pass.
    kernel = "auto" if sharding.compute_kernel == "dense" else sharding.compute_kernel
    return Placement(sharding.sharding_type, kernel, ranks, cache)


def _rank(shard: ShardMetadata) -> int:
    rank = shard.placement.rank() if shard.placement else None
    assert rank is not None, "a plan by TorchRec places its shards"
    return rank
