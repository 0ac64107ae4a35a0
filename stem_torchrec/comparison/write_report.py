"""Writes the report of a comparison whose runs are done: results, chosen settings, costs, and the further analyses."""

import shlex
import sys
from collections.abc import Sequence

from stem_torchrec.comparison.comparable_sections import comparable_samples
from stem_torchrec.comparison.costs import costs
from stem_torchrec.comparison.diagnostic_sections import gate_sections, table_sections
from stem_torchrec.comparison.intervals import MIN_USERS
from stem_torchrec.comparison.recommend import recommendation
from stem_torchrec.comparison.report import write_parquet
from stem_torchrec.comparison.result_sections import Comparisons, results
from stem_torchrec.comparison.scored_rows import Comparison, Scored, ScoredRows
from stem_torchrec.comparison.several_logs import RowsOfLogs
from stem_torchrec.comparison.variants import SPACES
from stem_torchrec.data.schema import load_schema
from stem_torchrec.models.table import MODELS
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.report_file import Report, escape
from stem_torchrec.training.watched_metric import SIGNS

_TUNED = {"learning_rate": "learning rate of tables", "embedding_l2": "embedding L2"}
_SCORED = ("model", "score", "chosen")
"""The columns of what was tried that are none of a setting."""


def write_report(comparison: Comparison, *, reports: int = 1) -> None:
    """Writes report.md, report.html and the numbers as Parquet; one process calls it, outside of any process group.

    Args:
        comparison: whose runs are done.
        reports: how many reports on the same models there are, as on several logs; each is a family by itself.

    Raises UserError if another process owns the folder.
    """
    with FolderLock(take_over=comparison.train.take_over) as lock:
        lock.take(str(comparison.folder), other="--out")
        line = _write_sections(comparison, reports)
    _print_end(comparison, line)


def _write_sections(comparison: Comparison, reports: int) -> str:
    """Writes the report; returns the model to take in a line, empty if `--recommend` does not ask for it."""
    scored = ScoredRows(comparison)
    report = Report("Comparison of models")
    introduction(report, scored, rows=len(scored.rows), reports=reports)
    family = results(report, scored)
    if comparison.tried:
        settings(report, comparison)
    line = _costs_and_choice(report, comparison, family)
    if comparison.pair is not None:
        comparable_samples(report, scored)
    gate_sections(report, comparison)
    table_sections(report, comparison)
    report.write(comparison.folder)
    return line


def write_report_of_logs(comparison: Comparison, by_log: Sequence[Comparison]) -> None:
    """Writes the report of each log, and one on the test rows of all; one process calls it.

    Args:
        comparison: of all logs.
        by_log: of each.

    Raises UserError as `write_report`.
    """
    for each in by_log:
        write_report(each, reports=len(by_log) + 1)
    with FolderLock(take_over=comparison.train.take_over) as lock:
        lock.take(str(comparison.folder), other="--out")
        scored, report = RowsOfLogs(comparison, by_log), Report("Comparison of models on several logs")
        introduction(report, scored, rows=scored.rows, reports=len(by_log) + 1)
        family = results(report, scored)
        report.text(
            "## On each log", "AUC over the base, mean over the seeds; log_1/report.md and so on have the rest."
        )
        for task in scored.tasks:
            report.text(f"### {escape(task)}, by log")
            report.table(scored.by_number(task))
        line = _costs_and_choice(report, comparison, family)
        report.write(comparison.folder)
    _print_end(comparison, line)


def _costs_and_choice(report: Report, comparison: Comparison, family: Comparisons) -> str:
    """Adds the costs, and the model to take if `--recommend` asks for it; returns that line, or an empty one."""
    of_models = costs(report, comparison)
    if not comparison.config.recommend:
        return ""
    line = recommendation(comparison, family, of_models)
    report.text("## Which to take", escape(line))
    return line


def _print_end(comparison: Comparison, line: str) -> None:
    print(f"\nreport: {comparison.folder / 'report.md'}, and report.html with its plots inside")
    if line:
        print(line)


def introduction(report: Report, scored: Scored, *, rows: int, reports: int) -> None:
    """Adds the log, the command line, and how to read the numbers of so many test rows in one of so many reports."""
    comparison = scored.comparison
    config, description = comparison.config, load_schema(comparison.path).description
    seeds = " and seeds" if len(comparison.seeds) > 1 else ""
    of_logs = f" of {len(config.logs)} logs, with trainings of their own" if config.logs else ""
    mean = (
        "Measures of all rows are means over the logs, weighted by their pairs of labels or rows; a user counts once "
        "for all logs, and each log draws its seeds."
    )
    alone = (
        f"This is one of {reports} reports on these models, each a family of comparisons of its own: p-values are "
        "adjusted within it alone, so a claim is made from one report, chosen before."
    )
    report.text(
        *([f"Log: {escape(description)}"] if description else []),
        # Four spaces make it a code block, where no character is a mark.
        f"    {' '.join(shlex.join(['stem_torchrec/compare.py', *sys.argv[1:]]).split())}",
        f"{rows:,} rows of the {escape(config.split)} split{of_logs}, seeds "
        f"{', '.join(map(str, comparison.seeds))}. Values are the mean ± the standard deviation over the seeds. "
        f"Differences have a {config.confidence:.0%} interval from draws of {scored.unit}{seeds}, then the p-value of "
        "no difference from the same draws, raw and adjusted for the number of comparisons in their family. They are "
        f"bold, and better or worse, if the adjusted one is at most {1 - config.confidence:.2g}. With few seeds "
        "intervals and p-values underestimate the spread of seeds, with one seed they leave it out. There are none "
        f"where fewer than {MIN_USERS} {scored.unit} have positives, or negatives, or for gAUC both. Each single-task "
        "model is tuned and stopped by its own task, every other model by the mean over the tasks.",
        *([_of_values(scored)] if set(scored.tasks) & set(scored.columns.not_binary) else []),
        *([mean] if config.logs else []),
        *([alone] if reports > 1 else []),
        *_models(comparison),
        *[f"Left out, as it could not be trained: {escape(reason)}" for reason in comparison.left_out.values()],
    )


def _of_values(scored: Scored) -> str:
    """A sentence on the tasks whose labels are numbers or levels."""
    kinds = [f"{escape(task)} ({kind})" for task, kind in scored.columns.not_binary.items() if task in scored.tasks]
    return (
        f"Labels are not 0 and 1 in {', '.join(kinds)}: AUC is the share of pairs of rows with different labels that "
        "are ordered rightly, RMSE and MAE are in the unit of the label, and logloss and NE are undefined. There is no "
        f"interval where all {scored.unit} but fewer than {MIN_USERS} have one and the same label, or for gAUC where "
        "fewer have two labels."
    )


def _models(comparison: Comparison) -> list[str]:
    """Sentences on the models that are not in the table of models, if there are any."""
    texts = [f"{model} ({comparison.variants[model].text})" for model in comparison.models if model not in MODELS]
    sentences = [f"Models by their options over those above: {escape('; '.join(texts))}."] if texts else []
    if any(comparison.variants[model].sets(SPACES) for model in comparison.models if model in comparison.variants):
        sentences.append(
            f"Models with {SPACES} are trained, stopped and chosen on the rows of these alone; all are compared on all "
            "rows."
        )
    return sentences


def settings(report: Report, comparison: Comparison) -> None:
    """Adds the setting of each model, chosen on the validation split."""
    report.text(
        "## What each was set to",
        f"The setting of each model that is best on the validation split, with seed {comparison.seeds[0]}. "
        "tuning.parquet lists all that were tried; a higher score is better (logloss, NE, RMSE and MAE are negated).",
    )
    metric = comparison.train.train.metric
    sign = SIGNS[metric.partition("/")[0]]
    report.table(
        [
            {
                "model": f"{row['model']}",
                **{
                    _TUNED.get(name, name): escape("" if v is None else f"{v}")
                    for name, v in row.items()
                    if name not in _SCORED
                },
                f"validation {metric}": f"{sign * row['score']:.4f}",
            }
            for row in comparison.tried
            if row["chosen"]
        ]
    )
    write_parquet(comparison.folder / "tuning.parquet", comparison.tried)
