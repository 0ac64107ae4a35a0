"""What the report says of comparable samples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.comparison.comparable import bin_of_rows, count_positives, key_columns, name_bins
from stem_torchrec.comparison.intervals import Interval, UsersBehind
from stem_torchrec.comparison.report import Report, dots, escape, show, write_parquet
from stem_torchrec.comparison.tested import Comparison, Tested
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.schema import load_schema


def comparable_samples(report: Report, comparison: Comparison, tested: Tested) -> None:
    """Test rows by the ratio of a user's, then an item's, positives in the training log."""
    assert comparison.pair is not None
    first, second = comparison.pair
    raw: list[dict[str, Any]] = []
    for kind, key in (("user", tested.columns.group), ("item", comparison.config.item)):
        if not key:
            continue
        report.text(
            f"## Comparable samples, by {kind}",
            f"Test rows by how much more of their {escape(key)}'s positives in the training log are of {escape(first)} "
            f"than of {escape(second)}, over the same ratio of the whole log: 1 is as everybody.",
        )
        bins = _bins(comparison, tested, key, tested.users if kind == "user" else tested.keys(key))
        for number, task in enumerate(comparison.pair):
            raw += [{"by": kind, **row} for row in _section(report, tested, task, bins, f"{kind}_{number}")]
    if raw:
        write_parquet(comparison.folder / "comparable.parquet", raw)


def _bins(
    comparison: Comparison, tested: Tested, key: str, values: NDArray[np.int64]
) -> Mapping[str, NDArray[np.bool_]]:
    """Which rows are in a bin, by its name."""
    assert comparison.pair is not None
    read = key_columns(tested.columns, key, comparison.pair)
    row_groups = find_row_groups(comparison.path, "train", load_schema(comparison.path), read)
    positives = count_positives(row_groups, tested.columns, key, comparison.pair, skip=comparison.skips_bad_rows)
    numbers = bin_of_rows(positives.ratios(values), comparison.config.ratio_edges)
    return {name: numbers == i for i, name in enumerate(name_bins(comparison.pair, comparison.config.ratio_edges))}


def _section(
    report: Report, tested: Tested, task: str, bins: Mapping[str, NDArray[np.bool_]], plot: str
) -> list[dict[str, Any]]:
    """A task's AUC by bin and model, and where it differs from the base; returns the numbers."""
    base, models = tested.comparison.config.base, tested.comparison.models
    lines, raw = [], []
    differences: dict[str, dict[str, Interval]] = {model: {} for model in models if model != base}
    for name, rows in bins.items():
        _, positive, user = tested.labelled(task, rows)
        behind = UsersBehind.count(positive, user)
        found = tested.resample(task, rows=rows) if behind.positives and behind.negatives else None
        line = {
            "ratio": name,
            "rows": f"{len(positive):,}",
            "positives": f"{positive.sum():,}",
            f"{tested.drawn} with positives": f"{behind.positives:,}",
        }
        for model in models:
            auc = found.whole[model] if found else np.nan
            interval = found.difference(model, base) if found else Interval(np.nan, np.nan, np.nan)
            line[model] = f"{auc:.4f}" if found else "-"
            if model != base and found:
                differences[model][name] = interval
            raw.append(
                {
                    "task": task, "ratio": name, "rows": len(positive), "positives": int(positive.sum()),
                    "users_with_positives": behind.positives, "model": model, "auc": auc, **interval.numbers,
                }
            )  # fmt: skip
        lines.append(line)
    report.text(f"### {escape(task)}", "AUC, mean over the seeds:")
    report.table(lines)
    shown = [name for name in bins if any(name in by_bin for by_bin in differences.values())]
    if shown:
        report.text(f"AUC over {base}:")
        report.table(
            [{"model": model, **{name: show(by_bin[name]) for name in shown}} for model, by_bin in differences.items()]
        )
    plotted = [name for name in shown if any(not np.isnan(by_bin[name].low) for by_bin in differences.values())]
    if plotted:
        figure = dots({m: {name: by_bin[name] for name in plotted} for m, by_bin in differences.items()}, "", width=2)
        report.plot(f"comparable_{plot}", figure, f"{task}: AUC over {base} by ratio, with intervals")
    return raw
