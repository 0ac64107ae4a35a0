"""The tables of a sweep one by one: a section of the report for the fastest case, and tables.parquet for all cases."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from tabulate import tabulate

from sweep.results import Outcome, TableTime

TABLES = "tables.parquet"
_SHOWN = 20
"""Tables of a case that the report shows."""


def format_tables(tables: Sequence[TableTime]) -> list[str]:
    """The slowest tables of a case as Markdown lines."""
    slowest = sorted(tables, key=lambda table: -float(np.median(table.ms)))
    total = sum(float(np.median(table.ms)) for table in tables)
    rows = []
    for table in slowest[:_SHOWN]:
        p10, p50, p90 = np.percentile(table.ms, [10, 50, 90])
        size = f"{table.rows:,}", str(table.dim), table.type, table.kernel, _format_ranks(table.ranks)
        times = f"{table.estimate_ms:.3f}", f"{p10:.2f}", f"{p50:.2f}", f"{p90:.2f}", f"{p50 / total:.0%}"
        rows.append([table.name, *size, *times])
    headers = ["table", "rows", "dim", "type", "kernel", "ranks", "estimate", "P10", "P50", "P90", "share"]
    aligned = ["left", "right", "right", *["left"] * 3, *["right"] * 5]
    lines = [tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=aligned), ""]
    if len(tables) > _SHOWN:
        lines += [f"The other {len(tables) - _SHOWN} tables take less each; {TABLES} has them.", ""]
    return lines


def tables_to_parquet(outcomes: Sequence[Outcome]) -> pa.Table:
    """A table with a row for each case and table, from the round in which it was measured."""
    schema = {
        "case": pa.string(), "table": pa.string(), "rows": pa.int64(), "dim": pa.int64(), "type": pa.string(),
        "kernel": pa.string(), "ranks": pa.list_(pa.int64()), "estimate_ms": pa.float64(), "p10_ms": pa.float64(),
        "p50_ms": pa.float64(), "p90_ms": pa.float64(),
    }  # fmt: skip
    rows = []
    for outcome in outcomes:
        for table in outcome.measurement.by_table if outcome.measurement else ():
            times = np.percentile(table.ms, [10, 50, 90]).tolist()
            size = table.name, table.rows, table.dim, table.type, table.kernel, list(table.ranks), table.estimate_ms
            rows.append(dict(zip(schema, (outcome.case.name, *size, *times), strict=True)))
    return pa.Table.from_pylist(rows, schema=pa.schema(list(schema.items())))


def _format_ranks(ranks: Sequence[int]) -> str:
    return ",".join(map(str, ranks)) if len(ranks) <= 8 else f"{len(set(ranks))} ranks"
