"""Starting from another model: its tables, and the plan that they were sharded by."""

from collections.abc import Mapping

from torch import nn
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan

from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.internals.pytorch import EnumerableShardingSpec, ShardMetadata
from stem_torchrec.sharding.placement import Placement, some
from stem_torchrec.transfer.weight_source import Source, match_tables, open_source, weights_of


def warm_start(model: nn.Module, source: Source, tables: Mapping[str, str]) -> None:
    """Fills tables of `model` with those of another model, bit for bit; all else stays as it is.

    All ranks call it, between sharding and the first batch. Optimizer states are not taken over.

    Args:
        model: any module, sharded by any plan or not.
        source: a checkpoint folder or a state dict; ranks and plan may be others than they were then.
        tables: for each table to fill, its name and the name of the table there. One there may fill several.

    Raises UserError, before it changes a weight, for a table that is missing or of another size.

    Example::

        warm_start(model, "dlrm/checkpoint", {"shared/uid": "t_uid", "like/uid": "t_uid"})
    """
    saved, here = open_source(source), weights_of(model)
    saved.read([match_tables(saved, here, ours, theirs) for ours, theirs in tables.items()])


def placements_like(plan: ShardingPlan, tables: Mapping[str, str]) -> dict[str, Placement]:
    """Placements that shard our tables as `plan` shards others; `plan_sharding` takes them.

    Args:
        plan: a plan by TorchRec, as `DistributedModelParallel.plan` holds it.
        tables: for each of our tables, the name of the one in the plan whose sharding it is to have.

    Raises UserError for a table that the plan does not have, or has in several modules.

    Example::

        placements = placements_like(dlrm.plan, {"shared/uid": "t_uid"})
        plan_sharding(stem, topology=topology, batch_size=4096, placements=placements)
    """
    theirs = [
        item
        for module in plan.plan.values()
        if isinstance(module, EmbeddingModuleShardingPlan)
        for item in module.items()
    ]
    placements = {}
    for ours, name in tables.items():
        found = [sharding for table, sharding in theirs if table == name]
        if len(found) > 1:
            raise UserError(f"the plan has a table {name!r} in {len(found)} modules; give a plan of one of them.")
        if not found:
            names = [table for table, _ in theirs]
            raise UserError(f"the plan has no table {name!r}, only {some(names)}{nearest(name, names)}")
        placements[ours] = _placement(found[0])
    return placements


def _placement(sharding: ParameterSharding) -> Placement:
    ranks: tuple[int, ...] = ()
    if isinstance(sharding.sharding_spec, EnumerableShardingSpec) and sharding.sharding_type != "row_wise":
        # Columns first, then rows, as Placement counts shards.
        shards = sorted(sharding.sharding_spec.shards, key=lambda shard: shard.shard_offsets[::-1])
        ranks = tuple(_rank(shard) for shard in shards)
    cache = sharding.cache_params.load_factor if sharding.cache_params else None
    # dense only says that their optimizer stays out of the backward pass.
    kernel = "auto" if sharding.compute_kernel == "dense" else sharding.compute_kernel
    return Placement(sharding.sharding_type, kernel, ranks, cache)


def _rank(shard: ShardMetadata) -> int:
    rank = shard.placement.rank() if shard.placement else None
    assert rank is not None, "a plan by TorchRec says where its shards are"
    return rank
