"""What a reader can check by hand, as sections of the report: memory, and bytes on the wire."""

from collections.abc import Sequence

from tabulate import tabulate

from stem_torchrec.config import TrainConfig
from stem_torchrec.sharding.topology import Bandwidths

from common.table_list import TableSpec, name_tasks
from planning.arithmetic import STATE, id_bytes, model_bytes, pooled_bytes, state_bytes, weight_bytes, wire
from planning.config import TFLOPS, PlanConfig
from planning.step import dense_part
from planning.strategies import GIB, Planned

MIB = 2**20


def memory_by_hand(config: PlanConfig, tables: Sequence[TableSpec], best: Planned | None, optimizer: str) -> list[str]:
    """Weights and state of every feature, as Markdown lines, beside those of the plan to take."""
    nodes = config.nodes[0] if best is None else best.nodes
    ranks = nodes * config.ranks_per_node
    rows = []
    for table in tables:
        weights, state = weight_bytes(table), state_bytes(table, optimizer)
        sizes = f"{table.rows:,}", str(table.dim), f"{weights:,}", f"{state:,}"
        copies = table.tables(config.tasks)
        rows.append([table.name, *sizes, str(copies), f"{copies * (weights + state) / GIB:,.2f}"])
    total = model_bytes(tables, optimizer, config.tasks) / GIB
    bare = sum(table.tables(config.tasks) * weight_bytes(table) for table in tables) / GIB
    others = "" if all(table.own for table in tables) else ", and those with own: false one"
    rows.append(["all", f"{sum(t.rows for t in tables):,}", "", "", "", "", f"{total:,.2f}"])
    headers = ["feature", "rows", "dim", "weights bytes", "state bytes", "tables", "GiB in all"]
    lines = [
        f"A table takes rows * dim * 4 bytes; {optimizer} keeps {STATE[optimizer]}. "
        f"Each feature has T+1 = {config.tasks + 1} tables{others}.",
        "",
        tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=("left", *["right"] * 6)),
        "",
        f"Over {ranks} ranks that is {total / ranks:.2f} GiB each, {bare / ranks:.2f} of it weights.",
    ]
    if best is not None and best.strategy.optimizer == optimizer:
        lines[-1] += (
            f" {best.strategy.name} puts {best.peak('weights') / 1024:.2f} GiB of weights on the fullest rank; the "
            f"planner counts {best.peak('memory') / 1024:.2f} GiB of GPU and {best.peak('host_memory') / 1024:.2f} GiB "
            "of host memory on the fullest ones, buffers included."
        )
    return lines


def wire_by_hand(
    config: PlanConfig, tables: Sequence[TableSpec], planned: Sequence[Planned], bandwidths: Bandwidths
) -> list[str]:
    """Ids and embeddings that a rank sends in a step, as Markdown lines, with the planner's ms beside them."""
    ids = [id_bytes(tables, batch_size=config.batch_size, tasks=n) / MIB for n in (config.tasks, 0)]
    pooled = pooled_bytes(tables, batch_size=config.batch_size, tasks=config.tasks)
    rows = []
    for each in planned:
        sent = wire(each.strategy.type, pooled, nodes=each.nodes, ranks_per_node=config.ranks_per_node)
        if each.plan is not None and sent is not None:
            ranks = each.plan.per_rank("communication")
            sizes = sent.intra / MIB, sent.inter / MIB
            by_hand = sent.ms(bandwidths, device=config.device)
            rows.append([each.strategy.name, each.nodes, *sizes, by_hand, sum(ranks) / len(ranks), each.uvm_tables])
    headers = ["strategy", "hosts", "MiB within", "MiB between hosts", "ms by hand", "planner's mean ms", "UVM tables"]
    return [
        f"A rank has B = {config.batch_size} rows. Each step it sends",
        "",
        f"- ids: sum over the features of B * pooling * 8 bytes: {ids[1]:.2f} MiB with packed tables, and with "
        f"`--sharding.input-dist once` if one rank serves each id, as with row_wise; {ids[0]:.2f} MiB, once for each "
        "table, with stock; between the two if ranks share the tables of a feature;",
        f"- pooled embeddings: sum over the tables of B * dim * 4 bytes: {pooled / MIB:.2f} MiB, and as many "
        "of gradients. Types that cut rows send partial sums: times all ranks for row_wise; times the ranks of a host, "
        "and once more between hosts, for table_row_wise and grid_shard.",
        "",
        "The ms by hand are twice the bytes over the bandwidths, and for types that cut rows also the copy of the "
        "gradients through memory. For tables in UVM the planner copies them at UVM's speed, so its ms are higher.",
        "",
        tabulate(rows, headers, tablefmt="github", floatfmt=("", "d", ",.2f", ",.2f", ",.3f", ",.3f", "d")),
    ]


def dense_by_hand(config: PlanConfig, tables: Sequence[TableSpec], train: TrainConfig) -> str:
    """The operations of the dense part in a step, and the size of its gradients, as a sentence."""
    dense = dense_part(train.model, tuple(tables), name_tasks(config.labels, config.tasks))
    precision = train.train.precision
    tflops = config.tflops or TFLOPS[config.device][precision]
    flops = 3 * 2 * config.batch_size * dense.products
    return (
        f"The dense part of {train.model.arch} with T = {config.tasks} has {dense.weights:,} weights, "
        f"{dense.products:,} of them in matrix products: 3 * 2 * {config.batch_size} rows * {dense.products:,} = "
        f"{flops / 1e12:.3g} * 10^12 operations a step, which take {flops / tflops / 1e9:.3f} ms at {tflops:g} * 10^12 "
        f"a second ({precision}). Its gradients are {4 * dense.weights / 2**20:.1f} MiB."
    )
