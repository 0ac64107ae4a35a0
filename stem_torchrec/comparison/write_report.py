"""Writes the report of a comparison whose runs are done: results, chosen settings, costs, and the further analyses."""

import shlex
import sys
from collections.abc import Mapping
from itertools import permutations

import torch

from stem_torchrec.comparison.comparable_sections import comparable_samples
from stem_torchrec.comparison.diagnostic_sections import gate_sections, table_sections
from stem_torchrec.comparison.diagnostics import count_weights
from stem_torchrec.comparison.intervals import MIN_USERS, Interval, Resampled
from stem_torchrec.comparison.report import METRICS, Report, dots, escape, show, spread, write_parquet
from stem_torchrec.comparison.scored_rows import Comparison, ScoredRows
from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.training.optimizers import states_of_tables
from stem_torchrec.training.watched_metric import SIGNS

_PHRASES = {
    "better": "better than",
    "within noise": "within noise of",
    "worse": "worse than",
    "undefined": "without an interval against",
}
"""The verdicts of an interval, in the words of the report."""


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
        f"Differences have a {config.confidence:.0%} interval from {config.resamples} draws of {scored.unit}{seeds}; "
        "they are bold if it excludes 0. With few seeds the interval underestimates their spread, with one seed it "
        f"leaves it out. There is no interval where fewer than {MIN_USERS} {scored.unit} have positives, or negatives, "
        "or for gAUC both. Each single-task model is tuned and stopped by its own task, every other model by the mean "
        "over the tasks.",
        *[f"Left out because a run diverged: {escape(reason)}" for reason in comparison.diverged.values()],
    )


def results(report: Report, scored: ScoredRows) -> None:
    """Adds the metrics of every model by task, and each model's difference to the base with its interval."""
    comparison, base = scored.comparison, scored.comparison.config.base
    metrics = {run: run.test_results()["metrics"] for run in comparison.runs}
    write_parquet(
        comparison.folder / "results.parquet",
        [
            {"model": run.model, "seed": run.seed, "task": task, **by_task[task]}
            for run, by_task in metrics.items()
            for task in scored.tasks
        ],
    )
    resampled = {(task, name): scored.resample(task, name) for task in scored.tasks for name in scored.measures}
    write_parquet(
        comparison.folder / "differences.parquet",
        [
            {"task": task, "metric": name, "model": model, "over": over, **measured.difference(model, over).numbers}
            for (task, name), measured in resampled.items()
            for model, over in permutations(comparison.models, 2)
        ],
    )
    differences = {
        measured_by: {model: measured.difference(model, base) for model in comparison.models if model != base}
        for measured_by, measured in resampled.items()
    }
    report.text("## Results")
    for task in scored.tasks:
        report.text(f"### {escape(task)}")
        rows = []
        for model in comparison.models:
            of_seeds = [metrics[run][task] for run in comparison.runs_of(model)]
            row = {"model": model} | {name: spread([values[name] for values in of_seeds]) for name in METRICS}
            for name in scored.measures:
                row[f"{name} over {base}"] = show(differences[task, name][model]) if model != base else ""
            rows.append(row)
        report.table(rows)
        for name in scored.measures:
            if differences[task, name]:
                report.text(f"{name}: {verdict_sentence(differences[task, name], base)}")
    by_model = {
        model: {f"{name}, {task}": of_models[model] for (task, name), of_models in differences.items()}
        for model in comparison.models
        if model != base
    }
    if by_model:
        caption = "differences with their intervals; more is better, except for logloss"
        report.plot("differences", dots(by_model, f"over {base}", width=4), caption)
    rivals(report, comparison, {f"{name}, {task}": measured for (task, name), measured in resampled.items()})


def rivals(report: Report, comparison: Comparison, resampled: Mapping[str, Resampled]) -> None:
    """Adds the differences of the first model to each other one, unless the first table has them already."""
    first, *others = comparison.models
    if first == comparison.config.base or len(others) < 2:
        return
    report.text(f"## Does {first} win?", f"Difference of {first} to each other model.")
    report.table(
        [
            {"over": model, **{title: show(of.difference(first, model)) for title, of in resampled.items()}}
            for model in others
        ]
    )
    for title, measured in resampled.items():
        models = by_verdict({model: measured.difference(first, model) for model in others})
        parts = [f"{phrase} {', '.join(models[v])}" for v, phrase in _PHRASES.items() if v in models]
        report.text(f"{escape(title)}: {first} is {'; '.join(parts)}.")


def verdict_sentence(differences: Mapping[str, Interval], over: str) -> str:
    """Names the models that are better than `over`, within noise of it, and worse."""
    models = by_verdict(differences)
    return "; ".join(f"{phrase} {over}: {', '.join(models[v])}" for v, phrase in _PHRASES.items() if v in models) + "."


def by_verdict(differences: Mapping[str, Interval]) -> dict[str, list[str]]:
    """The models by the verdict of their interval."""
    models: dict[str, list[str]] = {}
    for model, interval in differences.items():
        models.setdefault(interval.verdict, []).append(model)
    return models


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
