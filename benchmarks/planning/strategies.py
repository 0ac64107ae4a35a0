"""Plans a strategy on paper: a sharding type, a layout and an optimizer, for a list of tables and a cluster.

planned = plan_strategy(Strategy("row_wise", "split", "adagrad"), tables, config, bandwidths)
planned.plan.per_rank("estimate") if planned.plan else planned.reason
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torchrec.distributed.planner import Topology
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Layout, SparseOptimizerConfig, SparseOptimizerName
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.sharding.placement import COLUMN_TYPES, FUSED_TYPES, Placement
from stem_torchrec.sharding.plan import Plan
from stem_torchrec.sharding.planner import plan_sharding
from stem_torchrec.sharding.topology import Bandwidths
from stem_torchrec.tables import embedding_bag_configs, groups_of
from stem_torchrec.training.optimizers import apply_sparse_optimizer
from stem_torchrec.training.sparse_optimizers import SPARSE_OPTIMIZERS, check_sparse_optimizer

from common.table_list import TableSpec, name_tasks, sparse_features, table_choice
from planning.arithmetic import model_bytes, state_bytes, weight_bytes
from planning.config import GPU_SHARE, PlanConfig
from planning.search import bounded_proposers
from sweep.cases import TYPES

GIB = 2**30
UVM_KERNELS = ("fused_uvm", "fused_uvm_caching")
"""Kernels of tables in host memory that a GPU looks up."""


@dataclass(frozen=True)
class Strategy:
    """One row of the comparison."""

    type: str
    """A sharding type, or auto."""
    layout: Layout
    optimizer: SparseOptimizerName

    @property
    def name(self) -> str:
        """`row_wise/split/adagrad`."""
        return f"{self.type}/{self.layout}/{self.optimizer}"


@dataclass(frozen=True)
class Planned:
    """The plan of a strategy, or the reason why it has none."""

    strategy: Strategy
    nodes: int
    """Number of hosts."""
    tasks: int
    rows: int
    """Rows of all features, in one group."""
    seconds: float
    """How long the planning took."""
    plan: Plan | None = None
    reason: str = ""
    """Why there is no plan; empty if there is one."""

    def peak(self, value: str) -> float:
        """The largest of `plan.per_rank(value)`; NaN without a plan."""
        return float("nan") if self.plan is None else max(self.plan.per_rank(value))

    @property
    def uvm_tables(self) -> int:
        """Number of tables in host memory although the device is a GPU."""
        return 0 if self.plan is None else sum(table.kernel in UVM_KERNELS for table in self.plan.tables)

    @property
    def types(self) -> str:
        """Number of tables by type, as in `row_wise 3, table_wise 27`."""
        kinds = [] if self.plan is None else [table.sharding_type for table in self.plan.tables]
        return ", ".join(f"{kind} {kinds.count(kind)}" for kind in sorted(set(kinds)))

    @property
    def cut_rows(self) -> int:
        """Number of tables cut by columns while the optimizer keeps a number per row: they learn something else."""
        if self.plan is None or not SPARSE_OPTIMIZERS[self.strategy.optimizer].per_row:
            return 0
        return sum(table.sharding_type in COLUMN_TYPES for table in self.plan.tables)


def list_strategies(config: PlanConfig) -> list[Strategy]:
    """All combinations of the types, layouts and optimizers in `config`, each once."""
    types = dict.fromkeys(kind for name in config.types for kind in (TYPES if name == "all" else (name,)))
    return [
        Strategy(kind, layout, optimizer)
        for optimizer in dict.fromkeys(config.optimizers)
        for layout in dict.fromkeys(config.layouts)
        for kind in types
    ]


def plan_strategy(
    strategy: Strategy,
    tables: Sequence[TableSpec],
    config: PlanConfig,
    bandwidths: Bandwidths,
    *,
    nodes: int | None = None,
    tasks: int | None = None,
) -> Planned:
    """Plans a strategy; a UserError of the planner becomes the reason of a result without a plan.

    Args:
        strategy: what to plan.
        tables: the features.
        config: the cluster and the batch size.
        bandwidths: those of the cluster.
        nodes: number of hosts; by default the first of `config`.
        tasks: number of tasks; by default that of `config`.
    """
    tasks = config.tasks if tasks is None else tasks
    nodes = config.nodes[0] if nodes is None else nodes
    started = time.monotonic()
    planned = Planned(strategy, nodes, tasks, sum(table.rows for table in tables), seconds=0.0)
    try:
        topology = config.topology(nodes, bandwidths)
        plan = _plan(strategy, tables, config, topology, name_tasks(config.labels, tasks))
        return replace(planned, plan=plan, seconds=time.monotonic() - started)
    except UserError as error:
        seconds = time.monotonic() - started
        reason = str(error)
        if reason.startswith("no plan fits"):
            ranks = nodes * config.ranks_per_node
            reason = _why(strategy, tables, config, tasks, ranks, late=seconds >= config.seconds)
        return replace(planned, reason=reason, seconds=seconds)


def grow(tables: Sequence[TableSpec], factor: float) -> list[TableSpec]:
    """The tables with `factor` times the rows, at least one."""
    return [replace(table, rows=max(1, round(table.rows * factor))) for table in tables]


def build_tables(
    tables: Sequence[TableSpec], layout: Layout, optimizer: SparseOptimizerName, tasks: Sequence[str]
) -> EmbeddingBagCollection:
    """The tables of a run on the meta device, with their optimizer; raises UserError if the layout cannot have it."""
    features, choice = sparse_features(tables), table_choice(tables, tasks)
    configs = embedding_bag_configs(features, groups_of(tasks), layout=layout, table_choice=choice)
    collection = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
    apply_sparse_optimizer(collection, SparseOptimizerConfig(name=optimizer))
    return collection


def _why(
    strategy: Strategy, tables: Sequence[TableSpec], config: PlanConfig, tasks: int, ranks: int, *, late: bool
) -> str:
    """Why no plan fits, with the numbers; the planner's own message is a long paragraph."""
    side_by_side = {table.name: table.tables(tasks) if strategy.layout == "packed" else 1 for table in tables}
    largest = max(tables, key=lambda table: side_by_side[table.name] * weight_bytes(table))
    total = model_bytes(tables, strategy.optimizer, tasks) / GIB
    one = side_by_side[largest.name] * (weight_bytes(largest) + state_bytes(largest, strategy.optimizer)) / GIB
    gpu = f"{GPU_SHARE * config.hbm_gb:.4g} GiB of GPU and " if config.device == "cuda" else ""
    room = f"each of {ranks} ranks has {gpu}{config.host_gb:.4g} GiB of host memory for them"
    result = f"no plan that fits was found in {config.seconds:g} s" if late else "does not fit"
    if strategy.type == "data_parallel":
        return f"{result}: every rank would hold all {total:,.2f} GiB of tables and optimizer state; {room}."
    return (
        f"{result}: tables and optimizer state take {total:,.2f} GiB in all, the largest table, of {largest.name}, "
        f"{one:,.2f} GiB; {room}."
    )


def _plan(
    strategy: Strategy,
    tables: Sequence[TableSpec],
    config: PlanConfig,
    topology: Topology,
    tasks: Sequence[str],
) -> Plan:
    optimizer = SPARSE_OPTIMIZERS[strategy.optimizer]
    check_sparse_optimizer(
        # A decay changes no memory and no estimate.
        SparseOptimizerConfig(name=strategy.optimizer, weight_decay=0.01 if optimizer.needs_decay else 0.0),
        device=torch.device(config.device),
        dense_kernel=strategy.type == "data_parallel",
        labels_missing=False,
    )
    collection = build_tables(tables, strategy.layout, strategy.optimizer, tasks)
    placements = {table.name: Placement(strategy.type) for table in collection.embedding_bag_configs()}
    per_row = optimizer.per_row
    types = [strategy.type]
    if strategy.type == "auto":
        types = [kind for kind in FUSED_TYPES if not (per_row and kind in COLUMN_TYPES)]
    return plan_sharding(
        nn.ModuleDict({"embedding_bag_collection": collection}),
        topology=topology,
        batch_size=config.batch_size,
        placements=placements,
        whole_rows=per_row,
        pooling_factors={table.name: table.pooling for table in tables},
        proposers=bounded_proposers(types, seconds=config.seconds),
    )
