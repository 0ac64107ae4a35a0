"""The report of a sweep: report.md and report.parquet with a row per case, and the advice with its plan file."""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa
from tabulate import tabulate

from common.output import write_table, write_whole
from sweep.by_table import TABLES, format_tables, tables_to_parquet
from sweep.cases import Case
from sweep.config import Sweep
from sweep.gains import base_of, format_gains, gains
from sweep.results import TABLE_BATCHES, Outcome, ResultFolder
from sweep.rows import EARLY, EARLY_TOLERANCE, TOLERANCE, Row, as_fast, fastest, summarize

ADVICE_PLAN = "advice.plan.json"
REPORT = "report.md"
TABLE = "report.parquet"

_HOW_TO_READ = """\
- **P10, P50, P90**: ms of a training step until the last rank ends it, over all measured steps of all rounds;
  **spread**: range of the medians of the rounds, over P50; **samples/s**: the global batch divided by P50. **others**:
  cores that other processes kept busy meanwhile, by the system's count of CPU time; the report warns of more than a
  tenth of the cores.
- **ids, embeddings, gradients**: KiB that the ranks send in a step, summed over them. For data_parallel tables the
  gradients are what a ring all-reduce would send.
- **peak**: resident MiB of the rank that has the most; **added**: the part of it that came after the batches were in
  memory. **GPU**: MiB allocated on the GPU that has the most.
- **imbalance**: MiB of tables of the rank that has the most, over the mean of the ranks; 1 is even.
- **estimate**: ms that TorchRec's planner expects for lookup and exchange of embeddings, forward and backward, on the
  busiest rank. It does not include the exchange of ids, the dense part and what overlaps. **lookup** is the same part
  measured alone, after the ids have arrived. The planner assumes the bandwidths of a GPU cluster, or of one host's
  memory on CPU, and no time to start an operation: read the ratio as how far its order of the cases can be trusted,
  not as its error.
- **By table**: each table alone with the placement of the plan, lookup and exchange of its embeddings, forward and
  backward, over at most {batches} batches. Tables that are looked up together take less than the sum of these times.
  **share** is P50 over that sum.
- **gap**: largest relative difference of the loss from the reference's, in the first {early} steps and in all steps.
  **same** allows {early_tolerance:g} and {tolerance:g}. Plans that sum in another order were measured to differ by up
  to 1e-7 in the first steps (2e-6 with bf16 products), bf16 communication and a row-wise optimizer on cut rows by 1e-5
  and more. These differences grow later, as Adagrad and Adam divide gradients near 0 by numbers near 0.
- **Against stock and split**: each case beside the one of its type with TorchRec's own input distribution, split tables
  and fp32. **ids**: how many times fewer bytes of ids are sent; **copies**: how often stock sends an id to a rank that
  needs it, the factor that sending once can save: T+1, unless ranks share the tables of a feature. **speed**: the
  ratio of the median steps, as a median over the rounds and as their range, which is noise.
"""


def write_report(folder: ResultFolder, sweep: Sweep, *, rounds: int, global_batch: int) -> tuple[list[Row], str]:
    """Writes the report of all outcomes so far; returns the rows and the line of advice."""
    outcomes = folder.read_all(sweep.cases, rounds)
    rows = summarize(outcomes, global_batch=global_batch, precision=sweep.train.train.precision)
    advice = advise(folder, rows, outcomes, sweep)
    write_whole(folder.folder / REPORT, format_report(folder.head, rows, outcomes, sweep, advice))
    left_out = [Row(case, "left out", reason) for case, reason in sweep.left_out.items()]
    write_table(folder.folder / TABLE, to_table([*rows, *left_out]))
    write_table(folder.folder / TABLES, tables_to_parquet(outcomes))
    return rows, advice


def advise(folder: ResultFolder, rows: Sequence[Row], outcomes: Sequence[Outcome], sweep: Sweep) -> str:
    """Recommends the fastest case that learns the same, in one line with the options that use it.

    Writes its plan to advice.plan.json. Of several problems it takes the one with as many tasks as the log has labels,
    or else the most tasks, and with the run's own optimizer if possible.
    """
    best = fastest(rows)
    if not best:
        return "No case has run to its end, so there is no advice; the report has the reasons."
    wanted, own = len(sweep.labels), sweep.train.sparse.name
    row = min(best.values(), key=lambda row: (row.case.tasks != wanted, -row.case.tasks, row.case.optimizer != own))
    [plan] = {o.measurement.plan for o in outcomes if o.case == row.case and o.round == 0 and o.measurement is not None}
    path = folder.folder / ADVICE_PLAN
    write_whole(path, plan)
    options = shlex.join(["--sharding.plan", str(path), *options_of(row.case, sweep)])
    others = len(as_fast(row, rows))
    close = f"; within 5 % of it: {others} more" if others else ""
    labels = "" if row.case.tasks <= wanted else f" for a log with {row.case.tasks} labels"
    speed = f"{row.p50_ms:.1f} ms, {row.samples_per_second / 1000:.1f}k samples/s, {row.peak_mib:.0f} MiB"
    return f"Take {row.case.name}{labels} ({speed}{close}): {options}"


def options_of(case: Case, sweep: Sweep) -> list[str]:
    """The options of training that a case needs beside its plan."""
    options = ["--model.layout", case.layout, "--sharding.input-dist", case.input_dist, "--sparse.name", case.optimizer]
    if case.communication != "fp32":
        options += ["--sharding.communication", case.communication]
    if case.tasks < len(sweep.labels):
        options += ["--data.labels", *sweep.labels[: case.tasks]]
    return options


def format_report(
    head: dict[str, Any], rows: Sequence[Row], outcomes: Sequence[Outcome], sweep: Sweep, advice: str
) -> str:
    """The report as Markdown."""
    done = {case for case in sweep.cases if any(row.case == case for row in rows)}
    config = sweep.train
    measured = [outcome.measurement for outcome in outcomes if outcome.measurement is not None]
    lowest, highest = (choose((o.load for o in outcomes), default=0.0) for choose in (min, max))
    facts = {
        **head,
        "device": ", ".join(sorted({measurement.device for measurement in measured})),
        "revision": ", ".join(sorted({o.revision or "unknown" for o in outcomes})),
        "load": f"{lowest:.1f} to {highest:.1f} running processes before a case",
        "batch": f"{config.data.batch_size} rows per rank",
        "data": _data(sweep),
        "cases": f"{len(done)} of {len(sweep.cases)} run, {len(sweep.left_out)} combinations left out, see below",
    }
    notes = sorted({note for measurement in measured for note in measurement.notes})
    lines = ["# Sharding sweep", "", *(f"- {name}: {value}" for name, value in facts.items())]
    lines += [f"- note: {note}" for note in notes]
    if loaded := [row for row in rows if row.loaded]:
        lines += [
            f"- warning: other processes kept up to {max(row.others for row in loaded):.1f} cores busy, so these times "
            f"are too long: {', '.join(f'`{row.case.name}`' for row in loaded)}; measure again on a quiet machine."
        ]
    lines += ["", f"**{advice}**", ""]
    for problem, best in fastest(rows).items():
        ran = [row for row in rows if row.case.problem == problem and row.status == "ok"]
        kernels, precisions = ({getattr(row.case, name) for row in ran} for name in ("kernel", "communication"))
        lines += [f"## {problem[0]} tasks, {problem[1]}", "", format_rows(ran), ""]
        lines += [f"Kernel {', '.join(sorted(kernels))}; communication in {', '.join(sorted(precisions))}."]
        lines += [f"Fastest that learns the same: `{best.case.name}`; its plan is {_plan_file(best.case)}.", ""]
        first = next(o.measurement for o in outcomes if o.case == best.case and o.measurement is not None)
        if first.by_table:
            lines += [f"### By table, `{best.case.name}`", "", *format_tables(first.by_table)]
    if gained := gains(outcomes):
        lines += ["## Against stock and split", "", format_gains(gained), ""]
        compared = {gain.case for gain in gained}
        others = [row.case for row in rows if row.status == "ok" and row.case != base_of(row.case)]
        if alone := [case.name for case in others if case not in compared]:
            lines += [f"Without that case in the same round to compare with: {', '.join(alone)}.", ""]
    if failed := [row for row in rows if row.status != "ok"]:
        lines += ["## Not measured", ""]
        table = [[row.case.name, row.status, row.reason.replace("|", "/")] for row in failed]
        lines += [tabulate(table, ["case", "what", "why"], tablefmt="github"), ""]
    if sweep.left_out:
        table = [[case.name, reason] for case, reason in sweep.left_out.items()]
        lines += ["## Left out", "", tabulate(table, ["case", "why"], tablefmt="github"), ""]
    tolerances = {"early": EARLY, "early_tolerance": EARLY_TOLERANCE[config.train.precision], "tolerance": TOLERANCE}
    return "\n".join([*lines, "## How to read this", "", _HOW_TO_READ.format(**tolerances, batches=TABLE_BATCHES)])


def format_rows(rows: Sequence[Row]) -> str:
    """The rows of one problem as a Markdown table, the fastest first; leaves out columns that are the same in all."""
    columns: dict[str, list[str]] = {}
    ordered = sorted(rows, key=lambda row: row.p50_ms)
    for name, value in _COLUMNS.items():
        cells = [value(row) for row in ordered]
        if name in ("kernel", "cache", "comm", "spread", "others", "GPU") and len(set(cells)) == 1:
            continue
        columns[name] = cells
    right = [name in _COLUMNS and not columns[name][0][:1].isalpha() for name in columns]
    aligned = ["right" if numeric else "left" for numeric in right]
    return tabulate(columns, list(columns), tablefmt="github", disable_numparse=True, colalign=aligned)


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "type": lambda row: row.case.type,
    "layout": lambda row: row.case.layout,
    "input": lambda row: row.case.input_dist,
    "kernel": lambda row: row.case.kernel,
    "cache": lambda row: "" if row.case.cache is None else f"{row.case.cache:.0%}",
    "comm": lambda row: row.case.communication,
    "P10": lambda row: f"{row.p10_ms:.1f}",
    "P50": lambda row: f"{row.p50_ms:.1f}",
    "P90": lambda row: f"{row.p90_ms:.1f}",
    "spread": lambda row: "" if math.isnan(row.spread) else f"{row.spread:.0%}",
    "samples/s": lambda row: f"{row.samples_per_second:,.0f}",
    "others": lambda row: "" if math.isnan(row.others) else f"{row.others:.1f}",
    "ids": lambda row: f"{row.ids_bytes / 1024:,.0f}",
    "embeddings": lambda row: f"{row.embeddings_bytes / 1024:,.0f}",
    "gradients": lambda row: f"{row.gradients_bytes / 1024:,.0f}",
    "peak": lambda row: f"{row.peak_mib:,.0f}",
    "added": lambda row: f"{row.added_mib:,.0f}",
    "GPU": lambda row: f"{row.device_peak_mib:,.0f}",
    "imbalance": lambda row: f"{row.weights_imbalance:.2f}",
    "estimate": lambda row: f"{row.estimate_ms:.3f}",
    "lookup": lambda row: f"{row.lookup_ms:.2f}",
    "ratio": lambda row: f"{row.estimate_over_lookup:.3f}",
    "gap": lambda row: f"{row.early_gap:.0e} {row.gap:.0e}".replace("0e+00", "0"),
    "learns": lambda row: row.learns,
}


def to_table(rows: Sequence[Row]) -> pa.Table:
    """A table with a row per case: its name and parts, then the fields of Row, with null for NaN."""
    columns = {
        "name": [row.case.name for row in rows],
        **{field.name: [getattr(row.case, field.name) for row in rows] for field in fields(Case)},
        **{field.name: [getattr(row, field.name) for row in rows] for field in fields(Row) if field.name != "case"},
    }
    # from_pandas turns NaN into null.
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})


def _plan_file(case: Case) -> str:
    return f"cases/{case.name.replace('/', '.')}.0.plan.json"


def _data(sweep: Sweep) -> str:
    config = sweep.train.data
    if sweep.tables:
        rows = sum(table.rows for table in sweep.tables)
        columns = " and ".join(map(str, sorted({table.dim for table in sweep.tables})))
        return f"a list of {len(sweep.tables)} tables with {rows:,} rows per group, {columns} columns"
    return config.path or "the synthetic log"
