"""Writes the report of a comparison whose runs are done: results, chosen settings, costs, and the further analyses."""

import shlex
import sys

import torch

from stem_torchrec.comparison.comparable_sections import comparable_samples
from stem_torchrec.comparison.diagnostic_sections import gate_sections, table_sections
from stem_torchrec.comparison.diagnostics import count_weights
from stem_torchrec.comparison.intervals import MIN_USERS
from stem_torchrec.comparison.report import spread, write_parquet
from stem_torchrec.comparison.result_sections import results
from stem_torchrec.comparison.scored_rows import Comparison, ScoredRows
from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.report_file import Report, escape
from stem_torchrec.training.sparse_optimizers import states_of_tables
from stem_torchrec.training.watched_metric import SIGNS


def write_report(comparison: Comparison) -> None:
    """Writes report.md, report.html and the numbers as Parquet; one process calls it, outside of any process group.

    Raises UserError if another process owns the folder.
    """
    with FolderLock(take_over=comparison.train.take_over) as lock:
        lock.take(str(comparison.folder), other="--out")
        _write_sections(comparison)
    print(f"\nreport: {comparison.folder / 'report.md'}, and report.html with its plots inside")


def _write_sections(comparison: Comparison) -> None:
    scored = ScoredRows(comparison)
    report = Report("Comparison of models")
    introduction(report, scored)
    results(report, scored)
    if comparison.tried:
        settings(report, comparison)
    costs(report, comparison)
    if comparison.pair is not None:
        comparable_samples(report, scored)
    gate_sections(report, comparison)
    table_sections(report, comparison)
    report.write(comparison.folder)


def introduction(report: Report, scored: ScoredRows) -> None:
    """Adds the log, the command line, and how to read the numbers."""
    comparison = scored.comparison
    config, description = comparison.config, load_schema(comparison.path).description
    seeds = " and seeds" if len(comparison.seeds) > 1 else ""
    report.text(
        *([f"Log: {escape(description)}"] if description else []),
        # Four spaces make it a code block, where no character is a mark.
        f"    {' '.join(shlex.join(['stem_torchrec/compare.py', *sys.argv[1:]]).split())}",
        f"{len(scored.rows):,} rows of the {escape(config.split)} split, seeds "
        f"{', '.join(map(str, comparison.seeds))}. Values are the mean ± the standard deviation over the seeds. "
        f"Differences have a {config.confidence:.0%} interval from draws of {scored.unit}{seeds}, then the p-value of "
        "no difference from the same draws, raw and adjusted for the number of comparisons in their family. They are "
        f"bold, and better or worse, if the adjusted one is at most {1 - config.confidence:.2g}. With few seeds "
        "intervals and p-values underestimate the spread of seeds, with one seed they leave it out. There are none "
        f"where fewer than {MIN_USERS} {scored.unit} have positives, or negatives, or for gAUC both. Each single-task "
        "model is tuned and stopped by its own task, every other model by the mean over the tasks.",
        *[f"Left out because a run diverged: {escape(reason)}" for reason in comparison.diverged.values()],
    )


def settings(report: Report, comparison: Comparison) -> None:
    """Adds the setting of each model, chosen on the validation split."""
    report.text(
        "## What each was set to",
        f"The setting of each model that is best on the validation split, with seed {comparison.seeds[0]}. "
        "tuning.parquet lists all that were tried; a higher score is better (logloss and NE are negated).",
    )
    metric = comparison.train.train.metric
    sign = SIGNS[metric.partition("/")[0]]
    report.table(
        [
            {
                "model": f"{row['model']}",
                "learning rate of tables": f"{row['learning_rate']}",
                "embedding L2": f"{row['embedding_l2']}",
                f"validation {metric}": f"{sign * row['score']:.4f}",
            }
            for row in comparison.tried
            if row["chosen"]
        ]
    )
    write_parquet(comparison.folder / "tuning.parquet", comparison.tried)


def costs(report: Report, comparison: Comparison) -> None:
    """Adds the weights, memory and speed of every model."""
    report.text(
        "## What each costs",
        "MiB in training are weights, optimizer states and dense gradients in fp32 on one rank; several ranks share "
        "the tables, and each has the whole dense part. Activations are not counted. Single-task models are added up, "
        "though they train one after another.",
    )
    rows, raw = [], []
    for model in comparison.models:
        runs = comparison.runs_of(model)
        table_sizes, dense = count_weights(runs[0].folders())
        states = states_of_tables(table_sizes, comparison.train.sparse.name)
        tables = sum(torch.Size(size).numel() for size in table_sizes)
        speeds = [run.test_results()["samples_per_second"] for run in runs]
        rows.append(
            {
                "model": model,
                "weights in tables": f"{tables:,}",
                "dense weights": f"{dense:,}",
                "MiB of weights": f"{4 * (tables + dense) / 2**20:.1f}",
                # A dense weight has a gradient and two moments.
                "MiB in training": f"{4 * (tables + states + 4 * dense) / 2**20:.1f}",
                "samples/s": spread(speeds, digits=0),
            }
        )
        raw += [
            {
                "model": model, "seed": run.seed, "tables": tables, "dense": dense, "states_of_tables": states,
                "samples_per_second": speed,
            }
            for run, speed in zip(runs, speeds, strict=True)
        ]  # fmt: skip
    report.table(rows)
    write_parquet(comparison.folder / "costs.parquet", raw)
