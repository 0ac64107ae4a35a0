"""The sections on predictions: the metrics of the runs, and how much their streams read from each group."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from stem_torchrec.comparison.report import show
from stem_torchrec.inspection.gate_facts import GateFacts, gate_facts
from stem_torchrec.inspection.inspected_run import InspectedRun
from stem_torchrec.inspection.sections import Chart, Section, Table, of_runs
from stem_torchrec.inspection.two_runs import CONFIDENCE, Differences
from stem_torchrec.metrics.multi_task import to_json
from stem_torchrec.run_report.charts import COLORS, dash_of, empty_chart
from stem_torchrec.tables import SHARED
from stem_torchrec.training.gate_weights import BINS

_MOST_GROUPS = 3
"""Groups that a sentence or a chart has."""
_METRICS = {"auc": "AUC", "gauc": "gAUC", "logloss": "logloss", "ne": "NE", "pcoc": "PCOC"}
_OF_VALUES = {"rmse": "RMSE", "mae": "MAE"}
"""Beside them where some task's labels are numbers or levels."""


def metric_section(runs: Sequence[InspectedRun], differences: Differences | None) -> Section:
    """The metrics of each task, and the differences of two runs with intervals."""
    rows = []
    for task in dict.fromkeys(task for run in runs for task in run.tasks):
        for run in runs:
            if run.predicted is not None and task in run.tasks:
                values = to_json({task: run.predicted.metrics[task]})[task]
                has_values = any(each.rmse is not None for each in run.predicted.metrics.values())
                titles = _METRICS | (_OF_VALUES if has_values else {})
                shown = {title: _number(values.get(name)) for name, title in titles.items()}
                counts = {name: f"{values[name]:,}" for name in ("rows", "positives")}
                rows.append({"task": task, "run": run.name} | shown | counts)
    section = Section("Metrics", [of_runs(rows, len(runs))])
    if differences is not None and differences.intervals:
        run, other = runs
        unit = "users" if run.predicted is not None and run.predicted.grouped else "rows"
        section.parts += [
            f"{run.name} minus {other.name} on the same rows, with intervals of {CONFIDENCE:.0%} from "
            f"{differences.draws:,} draws of {unit}; then the p-value of no difference, raw and adjusted for the "
            f"{len(differences.intervals)} differences by Holm's method. A difference without an interval has too few "
            f"{unit} with labels of both kinds. One training each: the intervals leave out what another seed would "
            "change.",
            Table(
                [
                    {"task": task, "metric": name, run.name: _number(values[0]), other.name: _number(values[1])}
                    | {"difference": show(differences.intervals[task, name])}
                    | {run.name + " is": differences.intervals[task, name].verdict}
                    for (task, name), values in differences.values.items()
                ],
                2,
            ),
        ]
    return section


def gate_section(runs: Sequence[InspectedRun]) -> Section:
    """The weights of gates by group: means, spread over the rows, and how they are distributed."""
    facts = {run.name: gate_facts(run.predicted, run.groups) for run in runs if run.predicted is not None}
    section = Section("Who reads whom")
    if not any(each.rows is not None for of_run in facts.values() for each in of_run):
        section.parts.append("No model here has a gate that weighs experts.")
        return section
    named = dict.fromkeys(each.group for of_run in facts.values() for each in of_run)
    groups = sorted(named, key=lambda group: group == SHARED)
    keys = list(dict.fromkeys((each.layer, each.stream) for of_run in facts.values() for each in of_run))
    section.parts.append(
        "How much a task, or the shared stream, reads from each group: the weights of its gate, summed over the "
        "experts of the group; mean ± standard deviation over the predicted rows. An even gate weighs all experts "
        "alike, so what a gate has learned is the difference to that."
    )
    several, rows, sentences, charts = len({layer for layer, _ in keys}) > 1, [], [], []
    for number, (layer, stream) in enumerate(keys):
        place = {"stream": stream} | ({"layer": layer} if several else {})
        by_run = {
            name: {each.group: each for each in of_run if (each.layer, each.stream) == (layer, stream)}
            for name, of_run in facts.items()
        }
        for name, by_group in by_run.items():
            of_run, layers = f" of {name}" if len(facts) > 1 else "", f", in {layer}" if several else ""
            if by_group:
                means = {g: _mean(by_group[g]) if g in by_group else "-" for g in groups}
                rows.append(place | {"gate": name if of_run else "trained"} | means)
                sentences.append(f"{stream}{of_run} reads {_most_read(by_group)}{layers}.")
        rows += [place | row for row in even_rows(by_run, groups)]
        caption = f"{stream} reads, {layer}" if several else f"{stream} reads"
        charts.append(Chart(f"gates_{number}", _distribution(by_run, stream, groups), caption))
    section.parts += [Table(rows, 3 if several else 2), *sentences, *charts]
    section.parts.append(of_runs(_quantiles(facts), len(facts), text_columns=4, summary="Quantiles over the rows"))
    return section


def even_rows(by_run: dict[str, dict[str, GateFacts]], groups: Sequence[str]) -> list[dict[str, str]]:
    """What an even gate reads: a row for all runs, or one for each where they have other experts."""
    shares = {
        name: {group: f"{by_group[group].even:.3f}" if group in by_group else "-" for group in groups}
        for name, by_group in by_run.items()
        if by_group
    }
    first = next(iter(shares.values()), {})
    if all(each == first for each in shares.values()):
        return [{"gate": "even"} | first] if first else []
    return [{"gate": f"even, {name}"} | each for name, each in shares.items()]


def _mean(gate: GateFacts) -> str:
    return f"{gate.mean:.3f} ± {gate.deviation:.3f}"


def _most_read(by_group: dict[str, GateFacts]) -> str:
    """`0.71 from shared (even 0.80), 0.20 from like (even 0.10)`, the groups that are read the most."""
    ordered = sorted(by_group.values(), key=lambda gate: -gate.mean)[:_MOST_GROUPS]
    return ", ".join(f"{gate.mean:.2f} from {gate.group} (even {gate.even:.2f})" for gate in ordered)


def _distribution(by_run: dict[str, dict[str, GateFacts]], stream: str, groups: Sequence[str]) -> Figure:
    """The share of rows over the weight, a line for each group, in other dashes for the second run.

    Of many groups it has the stream's own, the shared one, and those that are read the most.
    """
    figure, axes = empty_chart()
    by_weight = sorted(
        groups, key=lambda group: -max((of_run[group].mean for of_run in by_run.values() if group in of_run), default=0)
    )
    drawn = list(dict.fromkeys([*(group for group in (stream, SHARED) if group in groups), *by_weight]))[:_MOST_GROUPS]
    middles = (np.arange(BINS) + 0.5) / BINS
    for number, (name, by_group) in enumerate(by_run.items()):
        for group, gate in by_group.items():
            if gate.rows is not None and group in drawn:
                counts = np.array(gate.rows.counts)
                label = group if len(by_run) == 1 else f"{group}, {name}"
                axes.plot(
                    middles, counts / counts.sum(), drawstyle="steps-mid", color=f"C{groups.index(group) % COLORS}",
                    linestyle=dash_of(number), linewidth=1.5, label=label, gid=f"run-{number}",
                )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("weight")
    axes.set_ylabel("share of rows")
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _quantiles(facts: dict[str, list[GateFacts]]) -> list[dict[str, str]]:
    return [
        {
            "stream": each.stream, "run": run, "layer": each.layer, "group": each.group, "mean": f"{each.mean:.3f}",
            "deviation": f"{each.deviation:.3f}",
        }
        | {f"P{share}": f"{each.quantile(share / 100):.3f}" for share in (5, 25, 50, 75, 95)}
        for run, of_run in facts.items()
        for each in of_run
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.4f}"
