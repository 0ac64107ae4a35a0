"""The sections of the report on comparable samples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.comparison.comparable import bin_of_rows, count_positives, key_columns, name_bins
from stem_torchrec.comparison.intervals import Interval, Resampled, UserCounts
from stem_torchrec.comparison.report import Report, dots, escape, show, write_parquet
from stem_torchrec.comparison.scored_rows import ScoredRows
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.schema import load_schema


def comparable_samples(report: Report, scored: ScoredRows) -> None:
    """Adds the AUC by the ratio of the two tasks' positives in the training log: of the user, then of the item."""
    comparison = scored.comparison
    assert comparison.pair is not None
    first, second = comparison.pair
    raw: list[dict[str, Any]] = []
    for kind, key in (("user", scored.columns.group), ("item", comparison.config.item)):
        if not key:
            continue
        report.text(
            f"## Comparable samples, by {kind}",
            f"Test rows by the ratio of {escape(first)} to {escape(second)} positives that their {escape(key)} has in "
            "the training log, divided by the same ratio of the whole log: 1 means as in the whole log.",
        )
        bins = _bins(scored, key, scored.users if kind == "user" else scored.keys(key))
        for number, task in enumerate(comparison.pair):
            rows = _section(report, scored, task=task, bins=bins, plot=f"comparable_{kind}_{number}")
            raw += [{"by": kind, **row} for row in rows]
    if raw:
        write_parquet(comparison.folder / "comparable.parquet", raw)


def _bins(scored: ScoredRows, key: str, values: NDArray[np.int64]) -> Mapping[str, NDArray[np.bool_]]:
    """The rows of each bin, by its name; `values` are the keys of the rows (N,)."""
    comparison = scored.comparison
    assert comparison.pair is not None
    columns = key_columns(scored.columns, key, comparison.pair)
    row_groups = find_row_groups(comparison.path, "train", load_schema(comparison.path), columns)
    positives = count_positives(row_groups, scored.columns, key, comparison.pair, skip=comparison.skips_bad_rows)
    numbers = bin_of_rows(positives.ratios(values), comparison.config.ratio_edges)
    return {name: numbers == i for i, name in enumerate(name_bins(comparison.pair, comparison.config.ratio_edges))}


def _section(
    report: Report, scored: ScoredRows, *, task: str, bins: Mapping[str, NDArray[np.bool_]], plot: str
) -> list[dict[str, Any]]:
    """Adds a task's AUC by bin and model, with differences to the base; returns the numbers as rows."""
    base, models = scored.comparison.config.base, scored.comparison.models
    lines, raw = [], []
    # Of the bins with labels of both kinds.
    resampled: dict[str, Resampled] = {}
    for name, rows in bins.items():
        _, positive, user = scored.labeled(task, rows)
        counts = UserCounts.count(positive, user)
        if counts.positives and counts.negatives:
            resampled[name] = scored.resample(task, rows=rows)
        of_bin = resampled.get(name)
        line = {
            "ratio": name,
            "rows": f"{len(positive):,}",
            "positives": f"{positive.sum():,}",
            f"{scored.unit} with positives": f"{counts.positives:,}",
        }
        for model in models:
            auc = of_bin.whole[model] if of_bin else np.nan
            interval = of_bin.difference(model, base) if of_bin else Interval(np.nan, np.nan, np.nan)
            line[model] = f"{auc:.4f}" if of_bin else "-"
            raw.append(
                {
                    "task": task, "ratio": name, "rows": len(positive), "positives": int(positive.sum()),
                    "users_with_positives": counts.positives, "model": model, "auc": auc, **interval.numbers,
                }
            )  # fmt: skip
        lines.append(line)
    report.text(f"### {escape(task)}", "AUC, mean over the seeds:")
    report.table(lines)
    differences = {
        model: {name: of_bin.difference(model, base) for name, of_bin in resampled.items()}
        for model in models
        if model != base
    }
    if resampled and differences:
        report.text(f"AUC over {base}:")
        report.table(
            [
                {"model": model, **{name: show(interval) for name, interval in by_bin.items()}}
                for model, by_bin in differences.items()
            ]
        )
    drawn = [name for name in resampled if any(not np.isnan(by_bin[name].low) for by_bin in differences.values())]
    if drawn:
        intervals = {model: {name: by_bin[name] for name in drawn} for model, by_bin in differences.items()}
        report.plot(plot, dots(intervals, "", width=2), f"{task}: AUC over {base} by ratio, with intervals")
    return raw
