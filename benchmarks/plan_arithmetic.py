"""What a reader can work out by hand: bytes of tables and optimizer state, and bytes on the wire in a step.

user_id of 1,000,000,000 rows and 16 columns, T = 8, adagrad:
weights 1e9 * 16 * 4 = 64 GB, as much state, in 8 + 1 tables: 1152 GB
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torchrec.distributed.planner.constants import BATCHED_COPY_PERF_FACTOR

from stem_torchrec.optim import states_of_tables
from stem_torchrec.sharding.topology import Bandwidths

from table_list import TableSpec

STATE = {
    "sgd": "none",
    "adagrad": "as much as the weights",
    "rowwise_adagrad": "4 bytes per row",
    "adam": "twice the weights",
    "lamb": "twice the weights",
    "partial_rowwise_adam": "as much as the weights, and 4 bytes per row",
}
"""What the optimizers keep beside the weights."""


def weight_bytes(table: TableSpec) -> int:
    """Of one table: fp32."""
    return table.rows * table.dim * 4


def state_bytes(table: TableSpec, optimizer: str) -> int:
    """What the optimizer keeps for one table, in fp32; see STATE."""
    return 4 * states_of_tables([(table.rows, table.dim)], optimizer)


def model_bytes(tables: Sequence[TableSpec], optimizer: str, tasks: int) -> int:
    """Weights and state of all tables: those of each feature T+1 times."""
    return (tasks + 1) * sum(weight_bytes(table) + state_bytes(table, optimizer) for table in tables)


def id_bytes(tables: Sequence[TableSpec], *, batch_size: int, copies: int) -> float:
    """int64 ids of a rank's batch, sent `copies` times each; lengths are not in it."""
    return copies * sum(batch_size * table.pooling * 8 for table in tables)


def pooled_bytes(tables: Sequence[TableSpec], *, batch_size: int, tasks: int) -> int:
    """fp32 embeddings that a rank's rows get in a step, one for each of T+1 tables of a feature."""
    return (tasks + 1) * sum(batch_size * table.dim * 4 for table in tables)


@dataclass(frozen=True)
class Wire:
    """Bytes of embeddings that a rank sends in the forward pass, by kind of link; their gradients are as many."""

    intra: float
    inter: float
    copied: float
    """Bytes of gradients that are copied into order after an all-gather, in memory."""

    def ms(self, bandwidths: Bandwidths, *, device: str) -> float:
        """Forward and backward, by the planner's rule: bytes by bandwidth, 2.455 times those that are copied."""
        intra, inter = _known(bandwidths.intra_host), _known(bandwidths.inter_host)
        memory = _known(bandwidths.hbm if device == "cuda" else bandwidths.ddr)
        links = self.intra / intra + self.inter / inter
        return (2 * links + self.copied * BATCHED_COPY_PERF_FACTOR / memory) / 1e6


def wire(kind: str, pooled: float, *, nodes: int, ranks_per_node: int) -> Wire | None:
    """What a sharding type sends for `pooled` bytes per rank; None where that is not simple (auto, data_parallel).

    As the planner does, it counts what a rank keeps for itself as well: one part in W.

    - table_wise, column_wise, table_column_wise: each embedding travels once, from the table to the row.
    - row_wise: every rank sends every other one its partial sums, W times as much in all, to be added up.
    - table_row_wise, grid_shard: the same among the L ranks of a host, then each embedding once between hosts.
    """
    ranks = nodes * ranks_per_node
    if kind in ("table_wise", "column_wise", "table_column_wise"):
        return Wire(0, pooled, 0) if nodes > 1 else Wire(pooled, 0, 0)
    if kind == "row_wise":
        sent = ranks * pooled
        return Wire(0, sent, sent) if nodes > 1 else Wire(sent, 0, sent)
    if kind in ("table_row_wise", "grid_shard"):
        sent = ranks_per_node * pooled
        return Wire(sent, pooled if nodes > 1 else 0, sent)
    return None


def _known(bandwidth: float | None) -> float:
    assert bandwidth is not None, "PlanConfig.bandwidths has a figure for each that its device needs"
    return bandwidth
