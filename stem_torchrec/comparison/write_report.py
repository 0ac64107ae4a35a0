"""Writes the report of a comparison whose runs are done."""

import shlex
import sys

from stem_torchrec.comparison.comparable_sections import comparable_samples
from stem_torchrec.comparison.diagnostic_sections import gate_sections, table_sections
from stem_torchrec.comparison.intervals import MIN_USERS
from stem_torchrec.comparison.report import Report, escape
from stem_torchrec.comparison.sections import choices, costs, results
from stem_torchrec.comparison.tested import Comparison, Tested
from stem_torchrec.data.schema import load_schema


def write_report(comparison: Comparison) -> None:
    """Writes report.md, report.html and the numbers as Parquet; one process does, and no process group waits for it."""
    tested = Tested(comparison)
    report = Report("Comparison of models")
    config, description = comparison.config, load_schema(comparison.path).description
    seeds = " and seeds" if len(comparison.seeds) > 1 else ""
    report.text(
        *([f"Log: {escape(description)}"] if description else []),
        # Four spaces: code, in which nothing is a mark.
        f"    {' '.join(shlex.join(['stem_torchrec/compare.py', *sys.argv[1:]]).split())}",
        f"{len(tested.rows):,} rows of the {escape(config.split)} split, seeds "
        f"{', '.join(map(str, comparison.seeds))}. Mean ± standard deviation over the seeds; differences with an "
        f"interval of {config.confidence:.0%} by {config.resamples} draws of {tested.drawn}{seeds}, bold where it "
        "leaves 0 out. Of few seeds the spread is drawn too small, of one not at all. Where fewer than "
        f"{MIN_USERS} {tested.drawn} have positives, or negatives, or for gAUC both, there is no interval. Single-task "
        "models stop, and are tuned, each by its own task; the others by the mean over the tasks.",
        *[f"Left out, as a run diverged: {escape(said)}" for said in comparison.diverged.values()],
    )
    results(report, comparison, tested)
    if comparison.chosen:
        choices(report, comparison)
    costs(report, comparison)
    if comparison.pair is not None:
        comparable_samples(report, comparison, tested)
    gate_sections(report, comparison)
    table_sections(report, comparison)
    report.write(comparison.folder)
    print(f"\nreport: {comparison.folder / 'report.md'}, and report.html with its plots inside")
