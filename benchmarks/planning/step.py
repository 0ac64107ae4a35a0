"""An estimate of a whole step: ids, tables, the dense part and the sum of its gradients, each by a formula.

    ids         bytes that the busiest rank receives / bandwidth of the slowest link
    tables      the planner's estimate: lookup and exchange of embeddings, forward and backward, on the busiest rank
    dense       3 products with each weight of experts, gates and towers, 2 B operations each / --tflops
    all-reduce  2 (W - 1) / W * 4 bytes for each dense weight / bandwidth of the slowest link, as a ring sends it

The step is their sum, as if nothing overlapped. In fact ids travel while the step before is computed, and gradients are
summed while others are computed. It leaves out reading and copying batches, all operations of the dense part but its
matrix products, its optimizer, waiting for other ranks, and what an operation costs before its first byte. So it orders
strategies and cluster sizes, and is no forecast of milliseconds.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from stem_torchrec.config import InputDist, ModelConfig, TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.models.build import build_model
from stem_torchrec.sharding.plan import Plan, PlannedTable
from stem_torchrec.sharding.topology import Bandwidths
from stem_torchrec.tables import table_feature, table_weights

from common.table_list import TableSpec, name_tasks, sparse_features
from planning.config import GPU_SHARE, TFLOPS, PlanConfig
from planning.strategies import Planned

_ID, _LENGTH, _WEIGHT = 8, 4, 4
"""Bytes of an id, of the length of a bag, and of a dense gradient."""


@dataclass(frozen=True)
class Step:
    """The parts of a step in ms, and what follows from their sum."""

    ids: float
    tables: float
    dense: float
    all_reduce: float
    samples_per_second: float
    """Of all ranks."""
    cost: float | None
    """Price of 10^9 samples; None without a price."""
    fill: float
    """Used share of the memory that tables may take, GPU or host, on the rank that is fullest."""

    @property
    def ms(self) -> float:
        """The sum of the parts."""
        return self.ids + self.tables + self.dense + self.all_reduce


Result = tuple[Planned, Step | None]
"""A strategy with its plan, and the estimate of its step if it has a plan."""


@dataclass(frozen=True)
class Dense:
    """The weights of experts, gates and towers."""

    weights: int
    products: int
    """Those that inputs are multiplied with; the others are biases."""


def estimate_step(
    planned: Planned, tables: Sequence[TableSpec], config: PlanConfig, train: TrainConfig, bandwidths: Bandwidths
) -> Step | None:
    """The estimate for a plan; None if there is no plan.

    Args:
        planned: of a strategy.
        tables: the features, with their numbers of ids.
        config: the cluster and the batch size.
        train: the model, precision and input distribution.
        bandwidths: those that `planned` was planned with.
    """
    plan = planned.plan
    if plan is None:
        return None
    link = (bandwidths.inter_host if planned.nodes > 1 else bandwidths.intra_host) or 0.0
    dense = dense_part(train.model, tuple(tables), name_tasks(config.labels, planned.tasks))
    received = max(ids_received(plan, tables, batch_size=config.batch_size, input_dist=train.sharding.input_dist))
    tflops = config.tflops or TFLOPS[config.device][train.train.precision]
    ranks = plan.world_size
    step = Step(
        ids=received / link / 1e6 if ranks > 1 else 0.0,
        tables=planned.peak("estimate"),
        dense=3 * 2 * config.batch_size * dense.products / tflops / 1e9,
        all_reduce=2 * (ranks - 1) / ranks * _WEIGHT * dense.weights / link / 1e6,
        samples_per_second=0.0,
        cost=None,
        fill=_fill(plan, config),
    )
    speed = ranks * config.batch_size / step.ms * 1000
    cost = config.price * ranks / 3600 / speed * 1e9 if config.price is not None else None
    return replace(step, samples_per_second=speed, cost=cost)


@lru_cache
def dense_part(model: ModelConfig, tables: tuple[TableSpec, ...], tasks: tuple[str, ...]) -> Dense:
    """The size of the model's dense part over these features; dense features of a log are not counted."""
    columns = Columns(sparse={each.name: each for each in sparse_features(tables)}, dense=(), labels=tasks, group=None)
    with torch.device("meta"):
        built = build_model(replace(model, task_weights=()), columns)
    of_tables = {id(weight) for weight in table_weights(built).values()}
    weights = {name: each.numel() for name, each in built.named_parameters() if id(each) not in of_tables}
    return Dense(sum(weights.values()), sum(n for name, n in weights.items() if name.endswith("weight")))


def ids_received(
    plan: Plan, tables: Sequence[TableSpec], *, batch_size: int, input_dist: InputDist = "stock"
) -> list[float]:
    """Bytes of ids and lengths that each rank receives in a step, its own included.

    A shard needs the ids of all ranks: all of a feature, or a share of them if the type cuts rows; and the length of
    every bag. stock sends them for every shard, once sends them once to a rank for all tables of a feature.
    """
    pooling = {table.name: table.pooling for table in tables}
    by_rank: dict[tuple[int, str], list[float]] = defaultdict(list)
    for table in plan.tables:
        feature = table_feature(table.name)
        for shard in table.shards if table.sharding_type != "data_parallel" else ():
            ids = pooling[feature] / _row_shards(table, plan)
            by_rank[shard.rank, feature].append(plan.world_size * batch_size * (_ID * ids + _LENGTH))
    received = [0.0] * plan.world_size
    for (rank, _), of_feature in by_rank.items():
        received[rank] += max(of_feature) if input_dist == "once" else sum(of_feature)
    return received


def _row_shards(table: PlannedTable, plan: Plan) -> int:
    """Number of shards that a column of the table is cut into by rows."""
    if table.sharding_type == "row_wise":
        return len(table.shards)
    return plan.local_world_size if table.sharding_type in ("table_row_wise", "grid_shard") else 1


def _fill(plan: Plan, config: PlanConfig) -> float:
    host = max(plan.per_rank("host_memory")) / 1024 / config.host_gb
    gpu = max(plan.per_rank("memory")) / 1024 / (GPU_SHARE * config.hbm_gb) if config.device == "cuda" else 0.0
    return max(host, gpu)
