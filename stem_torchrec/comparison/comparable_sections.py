"""The sections of the report on comparable samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.comparison.comparable import bin_of_rows, count_positives, key_columns, name_bins
from stem_torchrec.comparison.intervals import Interval, UserCounts
from stem_torchrec.comparison.multiplicity import adjust, describe_family
from stem_torchrec.comparison.report import dots, show, write_parquet
from stem_torchrec.comparison.resampling import Resampled
from stem_torchrec.comparison.scored_rows import ScoredRows
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.report_file import Report, escape

Bins = Mapping[str, NDArray[np.bool_]]
"""The rows of each bin (N,), by its name."""


@dataclass
class _Section:
    """A task's AUC by bin and model."""

    kind: str
    """user or item."""
    task: str
    bins: Bins
    resampled: Mapping[str, Resampled]
    """Of the bins with labels of both kinds."""
    differences: Mapping[tuple[str, str], Interval]
    """By bin and model, the difference to the base, adjusted with those of all sections."""


def comparable_samples(report: Report, scored: ScoredRows) -> None:
    """Adds the AUC by the ratio of the two tasks' positives in the training log: of the user, then of the item."""
    comparison = scored.comparison
    assert comparison.pair is not None
    first, second = map(escape, comparison.pair)
    candidates = {"user": scored.columns.group, "item": comparison.config.item}
    keys = {kind: key for kind, key in candidates.items() if key}
    bins = {kind: _bins(scored, key, kind) for kind, key in keys.items()}
    sections, draws = _measure(scored, {kind: of_kind for kind, of_kind in bins.items() if isinstance(of_kind, dict)})
    family = {(s.kind, s.task, *key): interval for s in sections for key, interval in s.differences.items()}
    for kind, of_kind in bins.items():
        report.text(
            f"## Comparable samples, by {kind}",
            f"Test rows by the ratio of {first} to {second} positives that their {escape(keys[kind])} has in the "
            "training log, divided by the same ratio of the whole log: 1 means as in the whole log.",
        )
        if isinstance(of_kind, str):
            report.text(of_kind)
            continue
        if family:
            config = comparison.config
            about = describe_family(family, config.correction, draws=draws, confidence=config.confidence)
            report.text(f"The comparisons by user and by item are a family of their own. {about}")
        for number, section in enumerate(s for s in sections if s.kind == kind):
            _write(report, scored, section, plot=f"comparable_{kind}_{number}")
    if sections:
        write_parquet(comparison.folder / "comparable.parquet", [row for s in sections for row in _raw(scored, s)])


def _bins(scored: ScoredRows, key: str, kind: str) -> dict[str, NDArray[np.bool_]] | str:
    """The rows of each bin by the key of each row, or why there are no bins."""
    comparison = scored.comparison
    assert comparison.pair is not None
    columns = key_columns(scored.columns, key, comparison.pair)
    row_groups = find_row_groups(comparison.path, "train", load_schema(comparison.path), columns)
    positives = count_positives(row_groups, scored.columns, key, comparison.pair, skip=comparison.skips_bad_rows)
    for task, total in zip(comparison.pair, positives.totals, strict=True):
        if not total:
            return f"{escape(task)} has no positives in the training log, so there is no ratio to split the rows by."
    values = scored.users if kind == "user" else scored.keys(key)
    numbers = bin_of_rows(positives.ratios(values), comparison.config.ratio_edges)
    return {name: numbers == i for i, name in enumerate(name_bins(comparison.pair, comparison.config.ratio_edges))}


def _measure(scored: ScoredRows, bins: Mapping[str, Bins]) -> tuple[list[_Section], int]:
    """Both tasks by user and by item, their comparisons adjusted together, and the number of draws."""
    comparison = scored.comparison
    assert comparison.pair is not None
    base, others = comparison.config.base, [m for m in comparison.models if m != comparison.config.base]
    measurable = {
        (kind, task): {name: rows for name, rows in of_kind.items() if _has_both(scored, task, rows)}
        for kind, of_kind in bins.items()
        for task in comparison.pair
    }
    draws = scored.draws_for(len(others) * sum(map(len, measurable.values())))
    resampled = {
        key: {name: scored.resample(key[1], rows=rows, draws=draws) for name, rows in of_task.items()}
        for key, of_task in measurable.items()
    }
    family = {
        (*key, name, model): of_bin.difference(model, base)
        for key, of_task in resampled.items()
        for name, of_bin in of_task.items()
        for model in others
    }
    family = adjust(family, comparison.config.correction)
    return [
        _Section(
            kind,
            task,
            bins[kind],
            of_task,
            {(name, model): family[kind, task, name, model] for name in of_task for model in others},
        )
        for (kind, task), of_task in resampled.items()
    ], draws


def _has_both(scored: ScoredRows, task: str, rows: NDArray[np.bool_]) -> bool:
    _, positive, _ = scored.labeled(task, rows)
    return bool(positive.any() and not positive.all())


def _write(report: Report, scored: ScoredRows, section: _Section, *, plot: str) -> None:
    """Adds a task's AUC by bin and model, with differences to the base."""
    task, base, models = section.task, scored.comparison.config.base, scored.comparison.models
    lines = []
    for name, rows in section.bins.items():
        _, positive, user = scored.labeled(task, rows)
        of_bin = section.resampled.get(name)
        line = {
            "ratio": name,
            "rows": f"{len(positive):,}",
            "positives": f"{positive.sum():,}",
            f"{scored.unit} with positives": f"{UserCounts.count(positive, user).positives:,}",
        }
        lines.append(line | {model: f"{of_bin.whole[model]:.4f}" if of_bin else "-" for model in models})
    report.text(f"### {escape(task)}", "AUC, mean over the seeds:")
    report.table(lines)
    if not section.resampled:
        report.text(f"No group of rows has both positives and negatives of {escape(task)}, so none has an AUC.")
    others = list(dict.fromkeys(model for _, model in section.differences))
    if others:
        report.text(f"AUC over {base}:")
        report.table(
            [
                {"model": model, **{name: show(section.differences[name, model]) for name in section.resampled}}
                for model in others
            ]
        )
    drawn = [name for name in section.resampled if any(not np.isnan(section.differences[name, m].low) for m in others)]
    if drawn:
        intervals = {model: {name: section.differences[name, model] for name in drawn} for model in others}
        report.plot(plot, dots(intervals, "", width=2), f"{task}: AUC over {base} by ratio, with intervals")


def _raw(scored: ScoredRows, section: _Section) -> list[dict[str, Any]]:
    """The numbers of a section as rows, one for each bin and model."""
    base, raw = scored.comparison.config.base, []
    for name, rows in section.bins.items():
        _, positive, user = scored.labeled(section.task, rows)
        of_bin = section.resampled.get(name)
        for model in scored.comparison.models:
            interval = section.differences.get((name, model)) or (of_bin.difference(model, base) if of_bin else None)
            raw.append(
                {
                    "by": section.kind, "task": section.task, "ratio": name, "rows": len(positive),
                    "positives": int(positive.sum()),
                    "users_with_positives": UserCounts.count(positive, user).positives, "model": model,
                    "auc": of_bin.whole[model] if of_bin else np.nan,
                    **(interval.numbers if interval else dict.fromkeys(("value", "low", "high", "p"), np.nan)),
                    "p_adjusted": interval.adjusted if interval else np.nan,
                }
            )  # fmt: skip
    return raw
