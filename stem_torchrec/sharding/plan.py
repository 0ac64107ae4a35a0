"""A plan: each rank's part of each table, with the planner's estimates, and as text."""

from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import ShardingOption
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig

_MIB = 2**20
_MANY, _LARGEST = 40, 20
"""With more tables than the first, the text of a plan has a line for as many as the second."""


@dataclass(frozen=True)
class PlannedShard:
    """A rank's part of a table."""

    rank: int
    rows: int
    columns: int
    memory: int
    """Bytes that the planner counts on the device: weights, optimizer state, buffers of input and output."""
    host_memory: int
    """Bytes that the planner counts in host memory; on CPU all bytes."""
    compute_ms: float
    """The planner's estimate of the lookup and its backward in a step."""
    communication_ms: float
    """The planner's estimate of the exchange of embeddings and gradients; no estimate includes that of ids."""

    @property
    def estimate_ms(self) -> float:
        """The planner's estimate of the whole step."""
        return self.compute_ms + self.communication_ms


@dataclass(frozen=True)
class PlannedTable:
    """How a table is sharded."""

    name: str
    rows: int
    dim: int
    sharding_type: str
    kernel: str
    cache_load_factor: float | None
    shards: tuple[PlannedShard, ...]

    @property
    def ranks(self) -> list[int]:
        """Rank of each shard."""
        return [shard.rank for shard in self.shards]


@dataclass(frozen=True)
class Plan:
    """A sharding plan for TorchRec, and its tables in the order of the model."""

    sharding_plan: ShardingPlan
    tables: tuple[PlannedTable, ...]
    world_size: int
    local_world_size: int

    def per_rank(self, value: str) -> list[float]:
        """The sum over each rank's shards of weights, memory or host_memory (MiB), or of compute, communication or
        their sum estimate (ms).
        """
        sums = [0.0] * self.world_size
        for table in self.tables:
            for shard in table.shards:
                sums[shard.rank] += _VALUES[value](shard)
        return sums


_VALUES = {
    "weights": lambda shard: shard.rows * shard.columns * 4 / _MIB,
    "memory": lambda shard: shard.memory / _MIB,
    "host_memory": lambda shard: shard.host_memory / _MIB,
    "compute": lambda shard: shard.compute_ms,
    "communication": lambda shard: shard.communication_ms,
    "estimate": lambda shard: shard.estimate_ms,
}


def make_plan(
    sharding_plan: ShardingPlan,
    options: Sequence[ShardingOption],
    tables: Sequence[EmbeddingBagConfig],
    topology: Topology,
) -> Plan:
    """The plan of `tables` from the options that TorchRec's planner chose."""
    chosen = {option.name: option for option in options}
    return Plan(
        sharding_plan,
        tuple(_planned(config, chosen[config.name]) for config in tables),
        topology.world_size,
        topology.local_world_size,
    )


def _planned(config: EmbeddingBagConfig, option: ShardingOption) -> PlannedTable:
    shards = tuple(
        PlannedShard(
            rank=shard.rank,
            rows=shard.size[0],
            columns=shard.size[1],
            memory=shard.storage.hbm,
            host_memory=shard.storage.ddr,
            compute_ms=shard.perf.total - shard.perf.fwd_comms - shard.perf.bwd_comms,
            communication_ms=shard.perf.fwd_comms + shard.perf.bwd_comms,
        )
        for shard in option.shards
    )
    cache = option.cache_load_factor
    size = config.num_embeddings, config.embedding_dim
    return PlannedTable(config.name, *size, option.sharding_type, option.compute_kernel, cache, shards)


def format_plan(plan: Plan) -> str:
    """The plan as a table with a line per model table, then one with the load per rank and how even it is.

    Of many tables it has the largest; plan.json has them all.
    """
    rows = []
    by_size = sorted(plan.tables, key=lambda table: table.rows * table.dim, reverse=True)
    largest = {table.name for table in (by_size if len(by_size) <= _MANY else by_size[:_LARGEST])}
    for table in plan.tables:
        if table.name not in largest:
            continue
        mib = [0.0] * plan.world_size
        for shard in table.shards:
            mib[shard.rank] += _VALUES["weights"](shard)
        kernel = table.kernel if table.cache_load_factor is None else f"{table.kernel} {table.cache_load_factor:g}"
        estimate = max(shard.estimate_ms for shard in table.shards)
        sharding = (table.sharding_type, kernel, _format_ranks(table, plan.world_size), max(mib), estimate)
        rows.append([table.name, table.rows, table.dim, *sharding])
    if smaller := [table for table in plan.tables if table.name not in largest]:
        rows.append([f"{len(smaller)} smaller ones", sum(table.rows for table in smaller), *[""] * 6])
    rows.append(["total", sum(table.rows for table in plan.tables), *[""] * 4, max(plan.per_rank("weights")), ""])
    headers = ["table", "rows", "dim", "type", "kernel", "ranks", "MiB per rank", "estimate ms"]
    lines = [tabulate(rows, headers, floatfmt=("", "", "", "", "", "", ".2f", ".4f"), intfmt=",")]
    loads = [
        [label, min(values), sum(values) / len(values), max(values), imbalance(values)]
        for label, name in (
            ("weights MiB", "weights"),
            ("planned memory on the device MiB", "memory"),
            ("planned memory on the host MiB", "host_memory"),
            ("planner's estimate ms", "estimate"),
        )
        if max(values := plan.per_rank(name)) > 0
    ]
    lines.append(tabulate(loads, ["per rank", "least", "mean", "most", "most / mean"], floatfmt=".3f"))
    return "\n\n".join(lines)


def imbalance(values: Sequence[float]) -> float:
    """The load of the most loaded rank divided by the mean load; 1 is even."""
    mean = sum(values) / len(values)
    return max(values) / mean if mean else 1.0


def _format_ranks(table: PlannedTable, world_size: int) -> str:
    if len(table.ranks) == world_size > 1 and len(set(table.ranks)) == world_size and world_size > 4:
        return "all"
    return ",".join(map(str, table.ranks)) if len(table.ranks) <= 8 else f"{len(set(table.ranks))} ranks"
