"""Puts shards on the ranks that a rule or a plan file names, and leaves the others to TorchRec."""

from collections.abc import Mapping, Sequence

from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.partitioners import GreedyPerfPartitioner
from torchrec.distributed.planner.types import Partitioner, PlannerError, PlannerErrorType, ShardingOption

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.sharding.placement import HOST_TYPES, Placement


class RankPartitioner(Partitioner):
    """Puts tables on the ranks of their placements, and the others around them with TorchRec's greedy partitioner.

    Args:
        placements: by table; the greedy partitioner places those without ranks.
    """

    def __init__(self, placements: Mapping[str, Placement]) -> None:
        self._ranks = {table: placement.ranks for table, placement in placements.items() if placement.ranks}

    def partition(self, proposal: list[ShardingOption], storage_constraint: Topology) -> list[ShardingOption]:
        """The proposal with a rank for every shard; raises PlannerError if it does not fit."""
        devices = storage_constraint.devices
        before = [(device.storage, device.perf) for device in devices]
        free = []
        try:
            for option in proposal:
                if option.name in self._ranks:
                    _put(option, self._ranks[option.name], storage_constraint)
                else:
                    free.append(option)
            GreedyPerfPartitioner().partition(free, storage_constraint)
        finally:
            # The planner passes the same topology with every proposal.
            for device, (storage, perf) in zip(devices, before, strict=True):
                device.storage, device.perf = storage, perf
        return proposal


def _put(option: ShardingOption, ranks: Sequence[int], topology: Topology) -> None:
    """Gives the shards their ranks, and takes the shards' memory and time from those ranks."""
    for shard, rank in zip(option.shards, _expand(option, ranks, topology.local_world_size), strict=True):
        device = topology.devices[rank]
        if not shard.storage.fits_in(device.storage):
            message = f"{option.name} does not fit on rank {rank}, where its rule or plan puts it"
            raise PlannerError(message, PlannerErrorType.INSUFFICIENT_STORAGE)
        shard.rank = rank
        device.storage -= shard.storage
        device.perf += shard.perf


def _expand(option: ShardingOption, ranks: Sequence[int], local_world_size: int) -> Sequence[int]:
    """A rank for each shard; for a type that cuts rows over a host, one rank may stand for all ranks of its host."""
    if option.sharding_type in HOST_TYPES and len(ranks) * local_world_size == option.num_shards:
        starts = [rank - rank % local_world_size for rank in ranks]
        ranks = [start + local for start in starts for local in range(local_world_size)]
    if len(ranks) != option.num_shards:
        raise UserError(
            f"{option.name} as {option.sharding_type} has {option.num_shards} shards, but {len(ranks)} ranks are named."
        )
    hosts = {rank // local_world_size for rank in ranks}
    if option.sharding_type in HOST_TYPES:
        first_of_hosts = [rank - rank % local_world_size for rank in ranks[::local_world_size]]
        if list(ranks) != [first + local for first in first_of_hosts for local in range(local_world_size)]:
            raise UserError(
                f"{option.name} as {option.sharding_type} lies on all ranks of a host in their order, but is to be on "
                f"the ranks {', '.join(map(str, ranks))}."
            )
    if option.sharding_type in ("table_row_wise", "table_column_wise") and len(hosts) > 1:
        raise UserError(
            f"{option.name} as {option.sharding_type} stays on one host, but its ranks are on {len(hosts)}."
        )
    return ranks
