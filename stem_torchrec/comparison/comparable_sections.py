"""What the report says of comparable samples."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.comparison.comparable import count_positives, group_rows, name_groups
from stem_torchrec.comparison.report import Report, dots, show, write_parquet
from stem_torchrec.comparison.statistics import Interval
from stem_torchrec.comparison.tested import Comparison, Tested
from stem_torchrec.data.files import Columns, find_row_groups
from stem_torchrec.data.schema import load_schema


def comparable_samples(report: Report, comparison: Comparison, tested: Tested) -> None:
    """Test rows grouped by the ratio of a user's, then an item's, positives in the training log."""
    assert comparison.pair is not None
    first, second = comparison.pair
    raw: list[dict[str, Any]] = []
    for kind, key in (("user", tested.columns.group), ("item", comparison.item)):
        if not key:
            continue
        report.text(
            f"## Comparable samples, by {kind}",
            f"Test rows by how much more of their {key}'s positives in the training log are of {first} than of "
            f"{second}, over the same ratio of the whole log: 1 is as everybody.",
        )
        groups = _groups(comparison, key, tested.users if kind == "user" else tested.column(key))
        for number, task in enumerate(comparison.pair):
            raw += [{"by": kind, **row} for row in _section(report, tested, task, groups, f"{kind}_{number}")]
    if raw:
        write_parquet(comparison.folder / "comparable.parquet", raw)


def _groups(comparison: Comparison, key: str, values: NDArray[np.int64]) -> Mapping[str, NDArray[np.bool_]]:
    """Which rows are in a group, by its name."""
    assert comparison.pair is not None
    columns = Columns(sparse={}, dense=(), labels=comparison.pair, group=key)
    row_groups = find_row_groups(comparison.path, "train", load_schema(comparison.path), columns)
    positives = count_positives(row_groups, key, comparison.pair, skip=comparison.skips_bad_rows)
    numbers = group_rows(positives.ratios(values), comparison.edges)
    return {name: numbers == i for i, name in enumerate(name_groups(comparison.pair, comparison.edges))}


def _section(
    report: Report, tested: Tested, task: str, groups: Mapping[str, NDArray[np.bool_]], plot: str
) -> list[dict[str, Any]]:
    """A task's AUC by group and model, and where it differs from the base; returns the numbers."""
    base, models = tested.comparison.base, tested.comparison.models
    lines, raw = [], []
    differences: dict[str, dict[str, Interval]] = {model: {} for model in models if model != base}
    for name, rows in groups.items():
        labels = tested.labels[task][rows]
        positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
        found = tested.resample(task, rows=rows) if positives and negatives else None
        line = {"group": name, "rows": f"{positives + negatives:,}", "positives": f"{positives:,}"}
        for model in models:
            auc = found.whole[model] if found else np.nan
            interval = found.difference(model, base) if found else Interval(np.nan, np.nan, np.nan)
            line[model] = f"{auc:.4f}" if found else "-"
            if model != base and not np.isnan(interval.low):
                differences[model][name] = interval
            raw.append(
                {
                    "task": task, "group": name, "rows": positives + negatives, "positives": positives, "model": model,
                    "auc": auc, **asdict(interval),
                }
            )  # fmt: skip
        lines.append(line)
    report.text(f"### {task}", "AUC, mean over the seeds:")
    report.table(lines)
    if any(differences.values()):
        shown = [name for name in groups if any(name in by_group for by_group in differences.values())]
        report.text(f"AUC over {base}:")
        report.table(
            [
                {"model": model, **{name: show(by_group[name]) if name in by_group else "-" for name in shown}}
                for model, by_group in differences.items()
            ]
        )
        figure = dots({m: {name: d[name] for name in shown if name in d} for m, d in differences.items()}, "", width=2)
        report.plot(f"comparable_{plot}", figure, f"{task}: AUC over {base} by group, with intervals")
    return raw
