"""The sections on what a run learns: losses, metrics, calibration, gates."""

from collections.abc import Mapping, Sequence

from stem_torchrec.run_report.charts import Line, calibration, over_steps
from stem_torchrec.run_report.run_record import PREDICTIONS, RunRecord
from stem_torchrec.runtime.report_file import Report, escape
from stem_torchrec.training.watched_metric import SIGNS

_TITLES = {"auc": "AUC", "gauc": "gAUC", "logloss": "logloss", "ne": "NE", "pcoc": "PCOC"}
_DRAWN = ("auc", "logloss")


def tasks_of(runs: Sequence[RunRecord]) -> list[str]:
    """The tasks of all runs."""
    return list(dict.fromkeys(task for run in runs for task in run.tasks))


def losses(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds the training loss of each task over steps."""
    report.text("## Losses", "The mean loss of the rows since the last line of the log, which all ranks have read.")
    _charts(report, runs, {f"train/loss/{task}": f"loss of {task}" for task in tasks_of(runs)})


def metrics(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds the metrics of the best evaluation, and AUC and logloss of each task over steps."""
    report.text("## Metrics", "Of the validation split. The table has the best evaluation, whose weights are kept.")
    rows = []
    for task in tasks_of(runs):
        for run in runs:
            values = run.best.valid.get(task) if run.best is not None else None
            if values is not None and run.best is not None:
                row = {"task": task, "run": run.name, "step": f"{run.best.step:,}"}
                row |= {title: _number(values.get(name)) for name, title in _TITLES.items()}
                rows.append(row | {"rows": f"{values['rows']:,}", "positives": f"{values['positives']:,}"})
    if rows:
        report.table(rows, text_columns=2)
    else:
        report.text("No evaluation has been kept yet.")
    names = {f"valid/{task}/{name}": f"{_TITLES[name]} of {task}" for task in tasks_of(runs) for name in _DRAWN}
    _charts(report, runs, names)


def calibrations(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds predicted over observed positives over steps, and a curve for each task that has predictions."""
    report.text(
        "## Calibration",
        "PCOC is the sum of the predictions divided by the number of positives: 1 is right on the whole. In a curve "
        "each point has equally many predicted positives, and the thin line is where predictions are right.",
    )
    _charts(report, runs, {f"valid/{task}/pcoc": f"PCOC of {task}" for task in tasks_of(runs)}, level=1)
    for number, task in enumerate(tasks_of(runs)):
        curves = {i: run.reliability[task] for i, run in enumerate(runs) if task in run.reliability}
        if any(curve.observed.any() for curve in curves.values()):
            rows = sum(curve.rows for curve in curves.values())
            caption = f"calibration of {task}, {rows:,} rows with a label" + (" in all runs" if len(curves) > 1 else "")
            report.plot(f"calibration_{number}", calibration(curves), caption)
    if without := [run for run in runs if not run.reliability]:
        folder = escape(str(without[0].folder))
        report.text(
            f"No curve for {escape(', '.join(run.name for run in without))}, as there are no predictions in the run "
            f"folder. This makes them: stem-evaluate --run {folder} --predictions {folder}/{PREDICTIONS}"
        )


def gates(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds how much each stream reads from each group over steps, for runs that log their gates."""
    names = list(dict.fromkeys(name for run in runs for name in run.names("gate/")))
    report.text("## Gates")
    if not names:
        report.text("No run has logged gates: its model has none, or an earlier version trained it.")
        return
    report.text(
        "How much a task, or the shared stream, reads from each group: the weights of its gate, summed over the "
        "experts of a group, mean over the rows of the validation split."
    )
    streams = dict.fromkeys(tuple(name.split("/")[1:3]) for name in names)
    groups = list(dict.fromkeys(name.split("/")[3] for name in names))
    for number, (layer, stream) in enumerate(streams):
        lines = [
            Line(i, run.series(name), group, label=label if i == _first(runs, name) else "")
            for i, run in enumerate(runs)
            for group, label in enumerate(groups)
            if (name := f"gate/{layer}/{stream}/{label}") in names and len(run.series(name).steps)
        ]
        report.plot(f"gates_{number}", over_steps(lines, "weight"), f"{stream} reads, {layer}")
    if len(runs) > 1:
        report.text("Colors are groups; dashes tell the runs, in their order.")


def _first(runs: Sequence[RunRecord], name: str) -> int:
    """The first run that has logged a name; its line stands in the legend."""
    return next(i for i, run in enumerate(runs) if len(run.series(name).steps))


def _charts(
    report: Report, runs: Sequence[RunRecord], captions: Mapping[str, str], *, level: float | None = None
) -> None:
    """Adds a chart for each name of the log that some run has."""
    for number, (name, caption) in enumerate(captions.items()):
        lines = [Line(i, series) for i, run in enumerate(runs) if len((series := run.series(name)).steps)]
        if lines:
            kind = "_".join(name.split("/")[:1] + name.split("/")[2:]) if name.startswith("valid/") else "loss"
            report.plot(f"{kind}_{number}", over_steps(lines, caption.split()[0], level=level), caption)


def watched(run: RunRecord) -> str:
    """The value of the metric that a run is judged by, at its best evaluation, or `-`."""
    metric, _, task = run.config.train.metric.partition("/")
    if run.best is None or metric not in SIGNS:
        return "-"
    values = [run.best.valid[each][metric] for each in ([task] if task else run.tasks)]
    known = [value for value in values if value is not None]
    return _number(sum(known) / len(known)) if len(known) == len(values) else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
