"""What a reader can compute by hand: bytes of tables and optimizer state, and bytes on the wire in a step.

user_id of 1,000,000,000 rows and 16 columns, T = 8, adagrad:
weights 1e9 * 16 * 4 = 64 GB, state as large, in 8 + 1 tables: 1152 GB
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torchrec.distributed.planner.constants import BATCHED_COPY_PERF_FACTOR

from stem_torchrec.sharding.topology import Bandwidths
from stem_torchrec.training.sparse_optimizers import states_of_tables

from common.table_list import TableSpec

STATE = {
    "sgd": "none",
    "adagrad": "as much as the weights",
    "rowwise_adagrad": "4 bytes per row",
    "adam": "twice the weights",
    "lamb": "twice the weights",
    "partial_rowwise_adam": "as much as the weights, and 4 bytes per row",
}
"""What each optimizer keeps beside the weights, in words."""


def weight_bytes(table: TableSpec) -> int:
    """Bytes of the fp32 weights of one table."""
    return table.rows * table.dim * 4


def state_bytes(table: TableSpec, optimizer: str) -> int:
    """Bytes that the optimizer keeps for one table, in fp32; see STATE."""
    return 4 * states_of_tables([(table.rows, table.dim)], optimizer)


def model_bytes(tables: Sequence[TableSpec], optimizer: str, tasks: int) -> int:
    """Bytes of weights and state of all tables; a feature has T+1 tables, or one that tasks share."""
    return sum(table.tables(tasks) * (weight_bytes(table) + state_bytes(table, optimizer)) for table in tables)


def id_bytes(tables: Sequence[TableSpec], *, batch_size: int, tasks: int = 0) -> float:
    """Bytes of the int64 ids of a rank's batch, each sent once for each of its tables with so many tasks; without the
    lengths of the bags.
    """
    return sum(table.tables(tasks) * batch_size * table.pooling * 8 for table in tables)


def pooled_bytes(tables: Sequence[TableSpec], *, batch_size: int, tasks: int) -> int:
    """Bytes of the fp32 embeddings that a rank receives in a step, one per row, feature and table of it."""
    return sum(table.tables(tasks) * batch_size * table.dim * 4 for table in tables)


@dataclass(frozen=True)
class Wire:
    """Bytes of embeddings that a rank sends in the forward pass, by kind of link; backward sends as many gradients."""

    intra: float
    """Within a host."""
    inter: float
    """Between hosts."""
    copied: float
    """Bytes of gradients that are copied in memory, into order, after an all-gather."""

    def ms(self, bandwidths: Bandwidths, *, device: str) -> float:
        """ms of forward and backward by the planner's rule: bytes over bandwidth, and 2.455 times that for copied ones.

        Args:
            bandwidths: in GB/s; those that the device needs are set.
            device: cuda or cpu; it selects the memory that the gradients are copied in.
        """
        intra, inter = _known(bandwidths.intra_host), _known(bandwidths.inter_host)
        memory = _known(bandwidths.hbm if device == "cuda" else bandwidths.ddr)
        links = self.intra / intra + self.inter / inter
        return (2 * links + self.copied * BATCHED_COPY_PERF_FACTOR / memory) / 1e6


def wire(kind: str, pooled: float, *, nodes: int, ranks_per_node: int) -> Wire | None:
    """What a sharding type sends for `pooled` bytes per rank; None if there is no simple rule (auto, data_parallel).

    Like the planner, it also counts what a rank keeps for itself: one part in W, the number of ranks.

    - table_wise, column_wise, table_column_wise: each embedding is sent once, from the rank of the table to that of the
      row.
    - row_wise: every rank sends its partial sums to every other one, W times as much in all, and they are added up.
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
    assert bandwidth is not None, "PlanConfig.bandwidths has a value for each link and memory of its device"
    return bandwidth
