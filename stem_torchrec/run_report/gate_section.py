"""The section on gates: how much each stream of a model reads from each group."""

import html
from collections.abc import Sequence

import numpy as np

from stem_torchrec.run_report.charts import COLORS, DASHES, Line, over_steps, swatch
from stem_torchrec.run_report.run_record import RunRecord, Series
from stem_torchrec.runtime.report_file import Report, escape

_SHARED = "shared"
_NOTHING = Series(np.zeros(0, dtype=np.int64), np.zeros(0))


def gates(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds the weights of gates by group at the best evaluation, and over steps, for runs that log them."""
    names = list(dict.fromkeys(name for run in runs for name in run.names("gate/")))
    report.text("## Gates")
    if not names:
        report.text(
            "No run has logged gates: its model has none, an earlier version trained it, or no evaluation was made."
        )
        return
    streams = list(dict.fromkeys((layer, stream) for _, layer, stream, _ in map(_parts, names)))
    groups = list(dict.fromkeys(group for *_, group in map(_parts, names)))
    layers = len({layer for layer, _ in streams})
    report.text(
        "How much a task, or the shared stream, reads from each group: the weights of its gate, summed over the "
        "experts of a group, mean over the rows of the validation split. The table has the best evaluation."
    )
    rows = []
    for layer, stream in streams:
        for run in runs:
            shares = {group: _at_best(run, f"gate/{layer}/{stream}/{group}") for group in groups}
            if any(share is not None for share in shares.values()):
                row = {"stream": stream, "run": run.name} | ({"layer": layer} if layers > 1 else {})
                rows.append(row | {group: "-" if share is None else f"{share:.3f}" for group, share in shares.items()})
    if rows:
        report.table(rows, text_columns=2)
    if without := [run.name for run in runs if not run.names("gate/")]:
        report.text(f"No gates of {escape(', '.join(without))}.")
    _over_steps(report, runs, streams, groups)


def _over_steps(
    report: Report, runs: Sequence[RunRecord], streams: Sequence[tuple[str, str]], groups: Sequence[str]
) -> None:
    """A chart for each stream; of more runs than there are dashes, one for its own group and one for the shared one."""
    several = len({layer for layer, _ in streams}) > 1
    drawn = False
    for number, (layer, stream) in enumerate(streams):
        caption = f"{stream} reads, {layer}" if several else f"{stream} reads"
        series = {
            (i, group): run.series(f"gate/{layer}/{stream}/{group}") for i, run in enumerate(runs) for group in groups
        }
        if not any(len(each.steps) > 1 for each in series.values()):
            continue
        drawn = True
        if len(runs) <= DASHES:
            lines = [Line(i, each, groups.index(group)) for (i, group), each in series.items() if len(each.steps)]
            report.plot(f"gates_{number}", over_steps(lines, "weight", from_zero=True), caption)
            continue
        for group in dict.fromkeys((stream, _SHARED)):
            lines = [Line(i, series[i, group]) for i in range(len(runs)) if len(series.get((i, group), _NOTHING).steps)]
            if lines:
                chart = over_steps(lines, "weight", from_zero=True)
                report.plot(f"gates_{number}_{groups.index(group)}", chart, f"{caption} from {group}")
    if drawn and len(runs) <= DASHES:
        report.text(_legend(runs, groups))


def _legend(runs: Sequence[RunRecord], groups: Sequence[str]) -> str:
    parts = [f"{swatch(f'c{i % COLORS}', 0)}{html.escape(group)}" for i, group in enumerate(groups)]
    if len(runs) > 1:
        gated = [(i, run) for i, run in enumerate(runs) if run.names("gate/")]
        parts += [f"{swatch('ink', i)}{html.escape(run.name)}" for i, run in gated]
    return f'<div class="legend">{"".join(f"<span>{part}</span>" for part in parts)}</div>'


def _at_best(run: RunRecord, name: str) -> float | None:
    """The number of a name at the best evaluation."""
    series = run.series(name)
    values = series.values[series.steps == run.best.step] if run.best is not None else []
    return None if not len(values) or np.isnan(values[-1]) else float(values[-1])


def _parts(name: str) -> tuple[str, str, str, str]:
    """`gate`, layer, stream and group of a name of the log."""
    gate, layer, stream, group = name.split("/")
    return gate, layer, stream, group
