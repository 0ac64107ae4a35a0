"""The report of a plan on paper: report.md, which a reader can check by hand, and report.parquet, a row per plan."""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa
from tabulate import tabulate

from stem_torchrec.sharding.plan import imbalance
from stem_torchrec.sharding.topology import Bandwidths

from common.table_list import TableSpec
from planning.arithmetic import STATE, id_bytes, model_bytes, pooled_bytes, state_bytes, weight_bytes, wire
from planning.calibrate import Calibration
from planning.config import PlanConfig
from planning.strategies import GIB, Planned, Strategy

MIB = 2**20

_HOW_TO_READ = """\
- **memory** is what the planner counts: tables, optimizer state, and buffers of ids and embeddings. On a GPU it keeps
  15 % free for the dense part, activations and the pipeline's batches. **host** is for the tables in UVM and their
  state. fused_uvm_caching also keeps a fifth of its rows on the GPU.{counted}
- **estimate** is TorchRec's, for the busiest rank in a step: lookup and exchange of embeddings, forward and backward.
  It does not include the exchange of ids, the dense part, what overlaps, and what an operation costs before its first
  byte. Trust its order of the strategies, not its milliseconds.
- **imbalance** is the busiest rank over the mean; 1 is even.
- **auto** mixes types. It is searched along TorchRec's greedy path, for each type alone, for those that cut no columns
  and for all, at a bounded number of places, and for at most {seconds:g} s per plan.
- Bandwidths from a data sheet give a step that is too short; `--calibrate` takes measured ones.
"""


@dataclass(frozen=True)
class Report:
    """Everything that a report is written from."""

    config: PlanConfig
    head: dict[str, str]
    tables: Sequence[TableSpec]
    bandwidths: Bandwidths
    planned: Sequence[Planned]
    best: Planned | None
    by_tasks: Sequence[Planned]
    by_rows: Sequence[Planned]
    calibration: Calibration | None


def format_report(report: Report) -> str:
    """The report as Markdown."""
    config = report.config
    lines = ["# Sharding plan on paper", "", *(f"- {name}: {value}" for name, value in report.head.items())]
    lines += ["", f"**{advice(report)}**", ""]
    for optimizer in dict.fromkeys(config.optimizers):
        lines += [f"## Memory by hand, {optimizer}", "", *_memory_by_hand(report, optimizer), ""]
    lines += ["## Bytes on the wire by hand", "", *_wire_by_hand(report), ""]
    lines += ["## Strategies", "", _table(report.planned, _STRATEGY | _NUMBERS), ""]
    if refused := [each for each in report.planned if each.plan is None]:
        lines += [*(f"- {each.strategy.name}: {each.reason}" for each in refused), ""]
    if otherwise := [each.strategy.name for each in report.planned if each.cut_rows]:
        lines += [
            "Not recommended, as the optimizer's number per row would be kept once per column shard: "
            f"{', '.join(otherwise)}.",
            "",
        ]
    if report.calibration is not None:
        lines += ["## Calibration", "", *_calibration(report.calibration), ""]
    for title, grown in (("tasks", report.by_tasks), ("rows", report.by_rows)):
        if grown:
            lines += [f"## Growth with {title}, {grown[0].strategy.name}", "", _table(grown, _GROWTH | _NUMBERS), ""]
            lines += [f"- T={each.tasks}, {each.rows:,} rows: {each.reason}" for each in grown if each.plan is None]
            lines += [""]
    lines += ["![growth](growth.png)", "", "## How to read this", ""]
    uncounted = [name for name in config.optimizers if name in ("lamb", "partial_rowwise_adam")]
    counted = f" For {' and '.join(uncounted)} it counts less state than above, only as much as the weights."
    return "\n".join([*lines, _HOW_TO_READ.format(counted=counted if uncounted else "", seconds=config.seconds)])


def advice(report: Report) -> str:
    """The recommended strategy, why it is recommended and the options that use it, in one line."""
    best, able = report.best, [each for each in report.planned if each.plan is not None]
    if best is None:
        return (
            "No strategy fits; the report has the reasons. Add ranks or memory, or choose optimizers with less state."
        )
    spilled = f", with {best.uvm_tables} tables in host memory" if best.uvm_tables else ""
    options = ("--sharding.plan", f"{report.config.out}/plan.json", "--model.layout", best.strategy.layout)
    return (
        f"Take {best.strategy.name}: its estimate, {best.peak('estimate'):.2f} ms, is the shortest of the {len(able)} "
        f"that fit of {len(report.planned)} strategies{spilled} ({best.types}): {shlex.join(options)} --sparse.name "
        f"{best.strategy.optimizer}"
    )


def _memory_by_hand(report: Report, optimizer: str) -> list[str]:
    config, copies = report.config, report.config.tasks + 1
    rows = []
    for table in report.tables:
        weights, state = weight_bytes(table), state_bytes(table, optimizer)
        sizes = f"{table.rows:,}", str(table.dim), f"{weights:,}", f"{state:,}"
        rows.append([table.name, *sizes, str(copies), f"{copies * (weights + state) / GIB:,.2f}"])
    total = model_bytes(report.tables, optimizer, config.tasks) / GIB
    bare = copies * sum(map(weight_bytes, report.tables)) / GIB
    rows.append(["all", f"{sum(t.rows for t in report.tables):,}", "", "", "", "", f"{total:,.2f}"])
    headers = ["feature", "rows", "dim", "weights bytes", "state bytes", "tables", "GiB in all"]
    lines = [
        f"A table takes rows * dim * 4 bytes; {optimizer} keeps {STATE[optimizer]}. "
        f"Each feature has T+1 = {copies} tables.",
        "",
        tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=("left", *["right"] * 6)),
        "",
        f"Over {config.world_size} ranks that is {total / config.world_size:.2f} GiB each, "
        f"{bare / config.world_size:.2f} of it weights.",
    ]
    able = [each for each in report.planned if each.plan is not None and each.strategy.optimizer == optimizer]
    if able:
        each = report.best if report.best in able else able[0]
        lines[-1] += (
            f" {each.strategy.name} puts {each.peak('weights') / 1024:.2f} GiB of weights on the fullest rank; the "
            f"planner counts {each.peak('memory') / 1024:.2f} GiB of GPU and {each.peak('host_memory') / 1024:.2f} GiB "
            "of host memory on the fullest ones, buffers included."
        )
    return lines


def _wire_by_hand(report: Report) -> list[str]:
    config, tables = report.config, report.tables
    ids = [id_bytes(tables, batch_size=config.batch_size, copies=n) / MIB for n in (config.tasks + 1, 1)]
    pooled = pooled_bytes(tables, batch_size=config.batch_size, tasks=config.tasks)
    rows = []
    for each in report.planned:
        sent = wire(each.strategy.type, pooled, nodes=config.nodes, ranks_per_node=config.ranks_per_node)
        if each.plan is not None and sent is not None:
            ranks = each.plan.per_rank("communication")
            sizes = sent.intra / MIB, sent.inter / MIB
            by_hand = sent.ms(report.bandwidths, device=config.device)
            rows.append([each.strategy.name, *sizes, by_hand, sum(ranks) / len(ranks), each.uvm_tables])
    headers = ["strategy", "MiB within the host", "MiB between hosts", "ms by hand", "planner's mean ms", "UVM tables"]
    return [
        f"A rank has B = {config.batch_size} rows. Each step it sends",
        "",
        f"- ids: sum over the features of B * pooling * 8 bytes: {ids[1]:.2f} MiB with packed tables, and with "
        f"`--sharding.input-dist once` if one rank serves each id, as with row_wise; T+1 times that, {ids[0]:.2f} MiB, "
        "with stock; between the two if ranks share the tables of a feature;",
        f"- pooled embeddings: sum over the features of B * dim * 4 bytes * (T+1): {pooled / MIB:.2f} MiB, and as many "
        "of gradients. Types that cut rows send partial sums: times all ranks for row_wise; times the ranks of a host, "
        "and once more between hosts, for table_row_wise and grid_shard.",
        "",
        "The ms by hand are twice the bytes over the bandwidths, and for types that cut rows also the copy of the "
        "gradients through memory. For tables in UVM the planner copies them at UVM's speed, so its ms are higher.",
        "",
        tabulate(rows, headers, tablefmt="github", floatfmt=("", ",.2f", ",.2f", ",.3f", ",.3f", "d")),
    ]


def _calibration(calibration: Calibration) -> list[str]:
    options = " ".join(
        f"--{name.replace('_', '-')} {getattr(calibration.bandwidths, name):.4g}" for name in calibration.changed
    )
    ratios = [
        ["before", *(f"{ratio:.3f}" for ratio in calibration.before)],
        ["after", *(f"{ratio:.3f}" for ratio in calibration.after)],
    ]
    factors = "one factor for both, as the cases cannot separate them" if calibration.together else "a factor for each"
    return [
        f"Fitted to {calibration.cases} measured cases of {calibration.folder}, with {factors}: `{options}` gives the "
        "same bandwidths. The others are as given, as the sweep does not determine them.",
        "",
        tabulate(ratios, ["estimate over measured", "minimum", "median", "maximum"], tablefmt="github"),
    ]


def _gib(value: str) -> Callable[[Planned], str]:
    return lambda each: "" if each.plan is None else f"{each.peak(value) / 1024:,.2f}"


def _even(value: str) -> Callable[[Planned], str]:
    return lambda each: "" if each.plan is None else f"{imbalance(each.plan.per_rank(value)):.2f}"


_STRATEGY: dict[str, Callable[[Planned], str]] = {
    "type": lambda each: each.strategy.type,
    "layout": lambda each: each.strategy.layout,
    "optimizer": lambda each: each.strategy.optimizer,
    "fits": lambda each: "no" if each.plan is None else "spills" if each.uvm_tables else "yes",
}
_GROWTH: dict[str, Callable[[Planned], str]] = {
    "T": lambda each: str(each.tasks),
    "rows of a group": lambda each: f"{each.rows:,}",
    "fits": _STRATEGY["fits"],
    "types": lambda each: each.types,
}
_NUMBERS: dict[str, Callable[[Planned], str]] = {
    "weights GiB": _gib("weights"),
    "GPU GiB": _gib("memory"),
    "host GiB": _gib("host_memory"),
    "UVM tables": lambda each: "" if each.plan is None else str(each.uvm_tables),
    "estimate ms": lambda each: "" if each.plan is None else f"{each.peak('estimate'):.3f}",
    "imbalance of weights": _even("weights"),
    "of estimate": _even("estimate"),
    "planned in s": lambda each: f"{each.seconds:.1f}",
}


def _table(planned: Sequence[Planned], columns: dict[str, Callable[[Planned], str]]) -> str:
    cells = {name: [value(each) for each in planned] for name, value in columns.items()}
    words = {*_STRATEGY, "types"}
    aligned = ["left" if name in words else "right" for name in cells]
    return tabulate(cells, list(cells), tablefmt="github", disable_numparse=True, colalign=aligned)


def to_table(report: Report) -> pa.Table:
    """A table with a row per plan; `part` is strategy, tasks or rows (growth), and NaN becomes null."""
    parts = {"strategy": report.planned, "tasks": report.by_tasks, "rows": report.by_rows}
    rows = [_row(part, each) for part, planned in parts.items() for each in planned]
    return pa.table({name: pa.array([row[name] for row in rows], from_pandas=True) for name in rows[0]})


def _row(part: str, each: Planned) -> dict[str, Any]:
    plan = each.plan
    even = {
        f"{name}_imbalance": math.nan if plan is None else imbalance(plan.per_rank(name))
        for name in ("weights", "estimate")
    }
    return {
        "part": part,
        **{field.name: getattr(each.strategy, field.name) for field in fields(Strategy)},
        "tasks": each.tasks,
        "rows": each.rows,
        "fits": plan is not None,
        "reason": each.reason,
        "weights_gib": each.peak("weights") / 1024,
        "device_gib": each.peak("memory") / 1024,
        "host_gib": each.peak("host_memory") / 1024,
        "uvm_tables": each.uvm_tables,
        "estimate_ms": each.peak("estimate"),
        "compute_ms": each.peak("compute"),
        "communication_ms": each.peak("communication"),
        **even,
        "types": each.types,
        "seconds": each.seconds,
    }
