"""report.parquet of a plan on paper: a row for each plan."""

import math
from dataclasses import fields
from typing import Any

import pyarrow as pa

from stem_torchrec.sharding.plan import imbalance

from planning.report import Report
from planning.step import Result
from planning.strategies import Strategy


def to_table(report: Report) -> pa.Table:
    """A table with a row per plan; `part` is strategy, tasks or rows (growth), and NaN becomes null."""
    parts = {"strategy": report.results, "tasks": report.by_tasks, "rows": report.by_rows}
    rows = [_row(part, each) for part, results in parts.items() for each in results]
    return pa.table({name: pa.array([row[name] for row in rows], from_pandas=True) for name in rows[0]})


def _row(part: str, result: Result) -> dict[str, Any]:
    each, step = result
    plan = each.plan
    even = {
        f"{name}_imbalance": math.nan if plan is None else imbalance(plan.per_rank(name))
        for name in ("weights", "estimate")
    }
    estimates = {"ids": "ids_ms", "dense": "dense_ms", "all_reduce": "all_reduce_ms", "ms": "step_ms"}
    estimates |= {name: name for name in ("samples_per_second", "cost", "fill")}
    return {
        "part": part,
        **{field.name: getattr(each.strategy, field.name) for field in fields(Strategy)},
        "nodes": each.nodes,
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
        **{column: math.nan if step is None else getattr(step, name) for name, column in estimates.items()},
        **even,
        "types": each.types,
        "seconds": each.seconds,
    }
