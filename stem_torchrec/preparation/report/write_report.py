"""Writes report.md and report.html of a log: its rows, labels, features and what to look at before training."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stem_torchrec.data.schema import Schema
from stem_torchrec.preparation.engines.engine import Engine
from stem_torchrec.preparation.report.facts import (
    MOST_FREQUENT,
    SHARES,
    FeatureFacts,
    LogFacts,
    NumberFacts,
    groups_of_rows,
    pairs_of_labels,
)
from stem_torchrec.preparation.report.features import FeatureMeasures, WrittenLog
from stem_torchrec.preparation.report.leak_rule import SMOOTHING
from stem_torchrec.preparation.report.warning_sentences import collision_text, warnings_of
from stem_torchrec.runtime.report_file import Report, escape

_ABOUT_LABELS = (
    "The share of positives is of the rows in which the label is not missing. A label that is a number or a level is "
    "positive above 0, in all sections."
)
_LABELS_OF_TABLE = 5
"""Columns with AUCs that a table has at most, so that it fits a page."""
_BAR = 10
"""Characters of the longest bar."""


def write_report(log: WrittenLog, steps: Mapping[str, int], engine: Engine, folder: Path) -> list[str]:
    """Writes the report of a log into its folder, and returns its warnings.

    Args:
        log: whose splits are written.
        steps: the rows that were left after each step.
        engine: counts.
        folder: of the log.
    """
    facts = measure(log, steps, engine)
    warnings = warnings_of(facts, log.schema, log.expressions, log.known)
    page(log.schema, facts, warnings).write(folder)
    return warnings


def measure(log: WrittenLog, steps: Mapping[str, int], engine: Engine) -> LogFacts:
    """The facts of a log."""
    measures, schema = FeatureMeasures(log, engine), log.schema
    return LogFacts(
        steps=steps,
        features={name: measures.feature(name) for name in log.spec.id_features},
        numbers={name: measures.number(name) for name in log.spec.numbers},
        pairs=pairs_of_labels(log.parts["train"], schema.label_names, engine),
        group=None if schema.group is None else groups_of_rows(log.parts["valid"], schema.group, engine),
    )


def page(schema: Schema, facts: LogFacts, warnings: Sequence[str]) -> Report:
    """The report of the facts."""
    report = Report("A prepared log")
    report.text(*([f"Log: {escape(schema.description)}"] if schema.description else []), "## What to look at")
    report.text("\n".join(f"- {escape(each)}" for each in warnings) if warnings else "Nothing stands out.")
    _rows(report, schema, facts)
    _labels(report, schema, facts)
    _features(report, facts.features)
    _numbers(report, facts.numbers)
    _lone_aucs(report, schema.label_names, {**facts.features, **facts.numbers})
    return report


def _rows(report: Report, schema: Schema, facts: LogFacts) -> None:
    report.text("## Rows", "The rows that were left after each step.")
    before, table = None, []
    for step, rows in facts.steps.items():
        table.append({"step": step, "rows": f"{rows:,}", "removed": "" if before is None else f"{before - rows:,}"})
        before = rows
    report.table(table)
    total = sum(split.rows for split in schema.splits.values())
    report.table(
        [
            {"split": name, "rows": f"{split.rows:,}", "share": f"{split.rows / total:.1%}"}
            for name, split in schema.splits.items()
        ]
    )


def _labels(report: Report, schema: Schema, facts: LogFacts) -> None:
    report.text("## Labels", _ABOUT_LABELS)
    report.table(
        [
            {
                "label": label,
                "split": name,
                "positives": f"{split.labels[label].positives:,}",
                "share": _share(split.labels[label].positives, split.rows - split.labels[label].missing),
                "missing": f"{split.labels[label].missing:,}",
                "share missing": _share(split.labels[label].missing, split.rows),
            }
            for label in schema.label_names
            for name, split in schema.splits.items()
        ]
    )
    if facts.pairs:
        report.text(
            "Comparable feedback: how often both labels of a pair are present in a row of train, and positive. Lift is "
            "the share of rows with both positive divided by the product of the two shares of positives: 1 means that "
            "the two have nothing to do with each other."
        )
        report.table([_pair(pair, facts, schema) for pair in facts.pairs])
    if facts.group is not None:
        group = facts.group
        report.text(
            f"{escape(group.column)} has {group.groups:,} groups in the {group.rows:,} rows of valid; {group.single:,} "
            "of them have a single row."
        )


def _pair(pair: tuple[str, str], facts: LogFacts, schema: Schema) -> dict[str, str]:
    train, both = schema.splits["train"], facts.pairs[pair]
    shares = [train.labels[label].positives / max(train.rows - train.labels[label].missing, 1) for label in pair]
    expected = shares[0] * shares[1] * both.both_present
    return {
        "pair": " and ".join(pair),
        "both present": f"{both.both_present:,}",
        "share of rows": _share(both.both_present, both.rows),
        "both positive": f"{both.both_positive:,}",
        "share of those": _share(both.both_positive, both.both_present),
        "lift": f"{both.both_positive / expected:.2f}" if expected else "-",
    }


def _features(report: Report, features: Mapping[str, FeatureFacts]) -> None:
    report.text(
        "## Features",
        "Ids are the rows of a feature's tables. Coverage is the share of rows with a value. Unseen is the share of "
        "ids that train does not have: of a vocabulary, values that have no id of their own, in train because they are "
        "too rare. Drift is the Jensen-Shannon divergence in bits between the shares of ids in a split and in train, "
        f"over the {MOST_FREQUENT} most frequent ids and all others as one: 0 is no drift, 1 nothing in common.",
    )
    splits = list(next(iter(features.values())).coverage)
    report.table(
        [
            {"feature": name, "ids": f"{feature.ids:,}", "in train": f"{feature.ids_of_train:,}"}
            | {f"coverage {split}": f"{feature.coverage[split]:.1%}" for split in splits}
            | {f"unseen {split}": f"{feature.unseen[split]:.1%}" for split in splits}
            | {f"drift {split}": f"{feature.drift[split]:.3f}" for split in splits[1:]}
            for name, feature in features.items()
        ]
    )
    for name, feature in features.items():
        if feature.collisions is not None:
            report.text(f"{escape(name)}: {escape(collision_text(feature.collisions))}")


def _numbers(report: Report, numbers: Mapping[str, NumberFacts]) -> None:
    if not numbers:
        return
    report.text(
        "## Dense features",
        "As they are before they are scaled; quantiles to three digits. Drift is that of features, over buckets with "
        "equally many rows of train.",
    )
    table = []
    for name, number in numbers.items():
        for split, quantiles in number.quantiles.items():
            row = {"dense feature": name, "split": split, "missing": f"{number.missing[split]:.1%}"}
            row |= {f"{share:.0%}": _number(quantiles[i]) if quantiles else "-" for i, share in enumerate(SHARES)}
            table.append(row | {"drift": f"{number.drift[split]:.3f}" if split in number.drift else ""})
    report.table(table)


def _lone_aucs(report: Report, labels: Sequence[str], features: Mapping[str, FeatureFacts | NumberFacts]) -> None:
    report.text(
        "## What each feature tells alone",
        f"AUC on valid of the share of positives that an id has in train, with {SMOOTHING:g} rows of the mean share "
        "besides; of a list the mean over its ids, of a number its bucket. A feature that the exposure has produced "
        "stands out here.",
    )
    for start in range(0, len(labels), _LABELS_OF_TABLE):
        some = labels[start : start + _LABELS_OF_TABLE]
        best = {name: max(_auc(feature, label) for label in some) for name, feature in features.items()}
        order = sorted(best, key=lambda name: -best[name])
        report.table([{"feature": name} | dict(_auc_cells(features[name], some)) for name in order])


def _auc_cells(feature: FeatureFacts | NumberFacts, labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    for label in labels:
        auc = _auc(feature, label)
        bar = "█" * round(2 * _BAR * max(auc - 0.5, 0))
        yield label, f"{bar} {auc:.3f}" if label in feature.aucs else "-"


def _auc(feature: FeatureFacts | NumberFacts, label: str) -> float:
    return feature.aucs[label].auc if label in feature.aucs else 0.0


def _number(number: float) -> str:
    """Three digits, without an exponent where a reader needs none."""
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e7 else f"{number:.3g}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"
