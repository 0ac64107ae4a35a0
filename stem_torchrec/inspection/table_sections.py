"""The sections on the tables of runs: what reaches the model, which rows have moved, similarity, changed ids."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stem_torchrec.inspection.inspected_run import InspectedRun
from stem_torchrec.inspection.sections import Section, Table, of_runs
from stem_torchrec.inspection.table_facts import ChangedId, FeatureFacts, TableFacts, dead_tables, shares_of_input
from stem_torchrec.tables import SHARED
from stem_torchrec.training.best_by_task import note_of_mean

_MOST_PAIRS = 10
"""Pairs of groups that the tables of a feature list; of more, those with the last group, which is shared."""
_MOST_SHOWN = 15
"""Ids that are listed over all features together."""


def table_section(runs: Sequence[InspectedRun]) -> Section:
    """What the tables of each run hold: in sum by group, those that tell next to nothing, and feature by feature."""
    groups = _groups(runs)
    by_group = sorted((row for run in runs for row in _by_group(run)), key=lambda row: groups.index(row["group"]))
    section = Section(
        "Tables",
        [
            "A row has moved if it differs from where the run started. Information abundance is the sum of a table's "
            "singular values divided by the largest one, from 1 (all rows on a line) to its width.",
            of_runs(by_group, len(runs)),
        ],
    )
    for run in runs:
        name = f"{run.name}: " if len(runs) > 1 else ""
        section.parts.append(f"{name}Started from {run.start.name}; {run.ids.note}.")
        if (note := note_of_mean(run.record.folder, "the tables here are")) is not None:
            section.parts.append(f"Note: {note}.")
        dead = dead_tables(run.features)
        number = sum(len(each.tables) for each in run.features)
        section.parts.append(
            f"{name}{len(dead)} of {number} tables tell the model next to nothing."
            if dead
            else f"{name}Each of {number} tables tells the model something."
        )
        if dead:
            section.parts.append(
                Table([{"table": f"{group}/{feature}", "why": why} for feature, group, why in dead], 2)
            )
    section.parts.append(
        "How much of what a group's tables tell comes from each feature: the variance of the row that is looked up, "
        "over the training rows where these can be counted, else over the table; in percent of the sum of a group's "
        "tables."
    )
    section.parts.append(of_runs([row for run in runs for row in _shares(run, groups)], len(runs)))
    for title, of_table in (
        ("Rows that have moved, of those whose ids stand in the training rows", _moved),
        ("Information abundance", lambda table: f"{table.abundance:.2f} of {table.dim}"),
        ("Length of a row: median, and from the 10th to the 90th percentile", _norms),
    ):
        rows = [_feature_row(run, each) | _cells(each, groups, of_table) for run in runs for each in run.features]
        section.parts.append(of_runs(rows, len(runs), summary=title))
    return section


def similarity_section(runs: Sequence[InspectedRun]) -> Section:
    """How alike the tables of one feature are between groups."""
    section = Section("Similarity of groups")
    means, rows = [], []
    pairs = list(dict.fromkeys(pair for run in runs for each in run.features for pair in each.similarity))
    if len(pairs) > _MOST_PAIRS:
        pairs = [pair for pair in pairs if any(run.groups[-1] in pair for run in runs)]
    for run in runs:
        for pair in pairs:
            spread = [each.similarity.get(pair, math.nan) for each in run.features if each.rows > 2]
            known = [similarity for similarity in spread if not math.isnan(similarity)]
            if known:
                means.append(
                    {"groups": " and ".join(pair), "run": run.name, "mean": f"{np.mean(known):.3f}"}
                    | {"least": f"{min(known):.3f}", "most": f"{max(known):.3f}", "features": f"{len(known)}"}
                )
        rows += [
            _feature_row(run, each)
            | {" and ".join(pair): _decimals(each.similarity.get(pair, math.nan)) for pair in pairs}
            for each in run.features
            if pairs
        ]
    if not means:
        section.parts.append("No model here has tables of several groups for a feature of more than two rows.")
        return section
    section.parts += [
        "Linear CKA of the tables of one feature in two groups: 1 means the same up to rotation and scale, 0 that they "
        "have nothing in common. Over the features of more than two rows, as two rows are always alike.",
        of_runs(means, len(runs)),
        of_runs(rows, len(runs), summary="Feature by feature"),
    ]
    return section


def changed_section(
    run: InspectedRun, changed: Mapping[str, Sequence[ChangedId]], *, since: str, about: str = ""
) -> Section:
    """The ids whose rows have changed the most.

    Args:
        run: whose ids they are.
        changed: by feature, the farthest first.
        since: what they have changed from.
        about: a further sentence.
    """
    section = Section("Most-changed ids")
    rows = [
        (each.distance, {"feature": feature, "value": values.get(each.id, "-"), "id": f"{each.id}"} | _of_id(each))
        for feature, of_feature in changed.items()
        for values in [run.values(feature, of_feature)]
        for each in of_feature
    ]
    if not rows:
        section.parts.append(f"No id is listed: no row differs from {since}, its start is not known, or --top is 0.")
        return section
    if all(row["value"] == "-" for _, row in rows):
        rows = [(distance, {n: cell for n, cell in row.items() if n != "value"}) for distance, row in rows]
    farthest = [row for _, row in sorted(rows, key=lambda row: -row[0])[:_MOST_SHOWN]]
    section.parts += [
        f"The distance of an id's rows to {since}: in all tables of the feature together, and in each. {about}".strip(),
        Table(farthest, 2),
        Table([row for _, row in rows], 2, summary="Feature by feature"),
    ]
    return section


def _by_group(run: InspectedRun) -> list[dict[str, str]]:
    """Sums over the tables of each group."""
    rows = []
    for group in run.groups:
        tables = [each.tables[group] for each in run.features if group in each.tables]
        if not tables:
            continue
        total = sum(table.rows for table in tables)
        seen = [(each.seen, each.tables[group].moved_of_seen) for each in run.features if group in each.tables]
        moved_of_seen = sum((n or 0) * (share or 0) for n, share in seen)
        known = [table.abundance for table in tables if not math.isnan(table.abundance)]
        rows.append(
            {
                "group": group, "run": run.name, "tables": f"{len(tables):,}", "rows": f"{total:,}",
                "ids in training": f"{sum(n or 0 for n, _ in seen):,}" if run.ids.counts else "-",
                "rows moved": _percent(sum(table.rows * (table.moved or 0) for table in tables) / total),
                "of ids in training": _percent(moved_of_seen / max(sum(n or 0 for n, _ in seen), 1))
                if run.ids.counts else "-",
                "information abundance": f"{np.mean(known):.2f}" if known else "-",
                "length of a row": f"{sum(table.rows * table.norms.mean for table in tables) / total:#.4g}",
            }
        )  # fmt: skip
    return rows


def _groups(runs: Sequence[InspectedRun]) -> list[str]:
    return sorted(dict.fromkeys(group for run in runs for group in run.groups), key=lambda group: group == SHARED)


def _shares(run: InspectedRun, groups: Sequence[str]) -> list[dict[str, str]]:
    shares = shares_of_input(run.features)
    largest = {each.feature: max(shares[each.feature, group] for group in each.tables) for each in run.features}
    ordered = sorted(run.features, key=lambda each: -largest[each.feature])
    return [
        _feature_row(run, each)
        | {group: _percent(shares[each.feature, group]) if group in each.tables else "-" for group in groups}
        for each in ordered
    ]


def _feature_row(run: InspectedRun, feature: FeatureFacts) -> dict[str, str]:
    seen = "-" if feature.seen is None else f"{feature.seen:,}"
    return {"feature": feature.feature, "run": run.name, "rows": f"{feature.rows:,}", "ids in training": seen}


def _cells(feature: FeatureFacts, groups: Sequence[str], show: Callable[[TableFacts], str]) -> dict[str, str]:
    return {group: show(feature.tables[group]) if group in feature.tables else "-" for group in groups}


def _moved(table: TableFacts) -> str:
    share = table.moved if table.moved_of_seen is None else table.moved_of_seen
    return "-" if share is None else _percent(share)


def _norms(table: TableFacts) -> str:
    return f"{table.norms.median:#.3g}, {table.norms.p10:#.3g} to {table.norms.p90:#.3g}"


def _of_id(each: ChangedId) -> dict[str, str]:
    count = {} if each.count is None else {"in training": f"{each.count:,}"}
    distances = {"distance": each.distance} | dict(each.by_group)
    return count | {name: f"{distance:#.4g}" for name, distance in distances.items()}


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def _decimals(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
