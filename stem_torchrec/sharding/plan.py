"""A plan: each rank's part of each table, with the planner's estimates; to text, to JSON and back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import ShardingOption
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from stem_torchrec.config.formats import with_format, without_format
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.file_systems import g_pathmgr
from stem_torchrec.sharding.placement import FUSED_KERNELS, FUSED_TYPES, HOST_TYPES, Placement, some

PLAN_FORMAT = 1
"""Format version of plan.json."""
_MIB = 2**20


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
    """The plan as a table with a line per model table, then one with the load per rank and how even it is."""
    rows = []
    for table in plan.tables:
        mib = [0.0] * plan.world_size
        for shard in table.shards:
            mib[shard.rank] += _VALUES["weights"](shard)
        kernel = table.kernel if table.cache_load_factor is None else f"{table.kernel} {table.cache_load_factor:g}"
        estimate = max(shard.estimate_ms for shard in table.shards)
        sharding = (table.sharding_type, kernel, _format_ranks(table, plan.world_size), max(mib), estimate)
        rows.append([table.name, table.rows, table.dim, *sharding])
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


def plan_to_json(plan: Plan) -> str:
    """The plan as JSON, which `read_plan` takes: for each table its size, type, kernel and the rank of each shard."""
    tables = {
        table.name: {
            "rows": table.rows,
            "dim": table.dim,
            "sharding_type": table.sharding_type,
            "compute_kernel": table.kernel,
            **({} if table.cache_load_factor is None else {"cache_load_factor": table.cache_load_factor}),
            "ranks": table.ranks,
        }
        for table in plan.tables
    }
    ranks = {"world_size": plan.world_size, "local_world_size": plan.local_world_size}
    head = json.dumps(with_format(ranks, PLAN_FORMAT))[1:-1]
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in tables.items())
    return f'{{\n  {head},\n  "tables": {{\n{lines}\n  }}\n}}\n'


def read_plan(path: str, tables: Sequence[EmbeddingBagConfig], topology: Topology) -> dict[str, Placement]:
    """The placements of a plan file for exactly these tables and ranks.

    Raises UserError that names the tables that do not fit and the reasons, or for a file in a newer format.
    """
    try:
        with g_pathmgr.open(path, "r") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--sharding.plan {path} cannot be read as a plan ({error}); a run writes plan.json."
        ) from error
    content = without_format(content, PLAN_FORMAT, f"--sharding.plan {path}")
    try:
        world_size, local = content["world_size"], content["local_world_size"]
        planned = {name: (entry["rows"], entry["dim"], _placement(entry)) for name, entry in content["tables"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"--sharding.plan {path} is not a plan ({error!r}); a run writes one as plan.json.") from error
    problems = _problems(planned, {t.name: (t.num_embeddings, t.embedding_dim) for t in tables})
    if world_size != topology.world_size:
        problems.insert(0, f"it is for {world_size} ranks, and this run has {topology.world_size}")
    elif local != topology.local_world_size:
        by_host = [name for name, (*_, p) in planned.items() if p.sharding_type in (*HOST_TYPES, "table_column_wise")]
        if by_host:
            problems.insert(
                0, f"{some(by_host)} need {local} ranks per host, and this run has {topology.local_world_size}"
            )
    if problems:
        raise UserError(f"--sharding.plan {path} does not fit: {'; '.join(problems)}.")
    return {name: placement for name, (*_, placement) in planned.items()}


def _problems(planned: Mapping[str, tuple[int, int, Placement]], sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    problems = []
    if missing := [name for name in sizes if name not in planned]:
        problems.append(f"it has no {some(missing)}")
    if unknown := [name for name in planned if name not in sizes]:
        problems.append(f"this model has no {some(unknown)}")
    for name, (rows, dim, _) in planned.items():
        if name in sizes and sizes[name] != (rows, dim):
            problems.append(
                f"{name} is {rows} x {dim} in the plan and {sizes[name][0]} x {sizes[name][1]} in this model"
            )
    if len(problems) > 6:
        problems[6:] = [f"and {len(problems) - 6} tables more"]
    return problems


def _placement(entry: Mapping[str, Any]) -> Placement:
    kind, kernel = entry["sharding_type"], entry["compute_kernel"]
    if kind not in ("data_parallel", *FUSED_TYPES) or kernel not in ("dense", *FUSED_KERNELS):
        raise ValueError(f"{kind} with the kernel {kernel}")
    everywhere = kind in ("row_wise", "data_parallel")
    cache = entry.get("cache_load_factor")
    return Placement(kind, kernel, () if everywhere else tuple(int(rank) for rank in entry["ranks"]), cache)


def _format_ranks(table: PlannedTable, world_size: int) -> str:
    if len(table.ranks) == world_size > 1 and len(set(table.ranks)) == world_size and world_size > 4:
        return "all"
    return ",".join(map(str, table.ranks)) if len(table.ranks) <= 8 else f"{len(set(table.ranks))} ranks"
