"""The sections of the report on gates and tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stem_torchrec.comparison.diagnostics import table_diagnostics
from stem_torchrec.comparison.report import spread, write_parquet
from stem_torchrec.comparison.scored_rows import Comparison
from stem_torchrec.runtime.report_file import Report, escape


def gate_sections(report: Report, comparison: Comparison) -> None:
    """Adds how much each stream reads from each group, for every model with gates."""
    raw: list[dict[str, Any]] = []
    for model in comparison.models:
        tests = [(run.seed, run.test_results()["gates"]) for run in comparison.runs_of(model)]
        raw += [
            {"model": model, "seed": seed, "layer": layer, "stream": stream, "group": group, "weight": weight}
            for seed, gates in tests
            for layer, streams in gates.items()
            for stream, groups in streams.items()
            for group, weight in groups.items()
        ]
    if not raw:
        return
    report.text(
        "## Who reads whom",
        "The gates' weights, summed over the experts of a group; mean over the rows of the "
        f"{escape(comparison.config.split)} split.",
    )
    groups = list(dict.fromkeys(row["group"] for row in raw))
    gates_of = dict.fromkeys((row["model"], row["layer"], row["stream"]) for row in raw)
    lines = []
    for model, layer, stream in gates_of:
        line = {"model": model, "layer": layer, "gate": stream}
        for group in groups:
            weights = [
                row["weight"]
                for row in raw
                if (row["model"], row["layer"], row["stream"], row["group"]) == (model, layer, stream, group)
            ]
            line[f"reads {group}"] = spread(weights, digits=3) if weights else ""
        lines.append(line)
    report.table(lines)
    write_parquet(comparison.folder / "gates.parquet", raw)


def table_sections(report: Report, comparison: Comparison) -> None:
    """Adds the information abundance of each group's tables, and the similarity of two groups' tables."""
    tables: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for run in comparison.runs:
        label = {"model": run.model, "seed": run.seed}
        of_run, pairs_of_run = table_diagnostics(run.folders())
        tables += [{**label, **row} for row in of_run]
        pairs += [{**label, **row} for row in pairs_of_run]
    report.text(
        "## What the tables hold",
        "Information abundance is the sum of a table's singular values divided by the largest one, from 1 (collapsed "
        "onto a line) to the embedding dimension. Mean over the features and seeds; tables.parquet lists each table.",
    )
    groups = list(dict.fromkeys(row["group"] for row in tables))
    report.table(
        [
            {"model": model, **{g: _mean(tables, "information_abundance", model=model, group=g) for g in groups}}
            for model in comparison.models
        ]
    )
    write_parquet(comparison.folder / "tables.parquet", tables)
    if not pairs:
        return
    report.text(
        "Similarity of two groups' tables of the same feature (linear CKA): 1 means the same up to rotation and scale. "
        "Mean over the seeds and the features with more than one row; similarity.parquet lists each pair."
    )
    two_groups = list(dict.fromkeys((row["group"], row["other"]) for row in pairs))
    models = [model for model in comparison.models if any(row["model"] == model for row in pairs)]
    report.table(
        [
            {
                "model": m,
                **{f"{a} and {b}": _mean(pairs, "similarity", model=m, group=a, other=b) for a, b in two_groups},
            }
            for m in models
        ]
    )
    write_parquet(comparison.folder / "similarity.parquet", pairs)


def _mean(rows: Sequence[Mapping[str, Any]], name: str, **where: str) -> str:
    values = [row[name] for row in rows if all(row[key] == value for key, value in where.items())]
    known = [value for value in values if not math.isnan(value)]
    return f"{sum(known) / len(known):.2f}" if known else "-" if values else ""
