"""The sections on what a run learns: losses, metrics, calibration."""

from collections.abc import Mapping, Sequence

from stem_torchrec.run_report.charts import Line, calibration, over_steps
from stem_torchrec.run_report.run_record import PREDICTIONS, RunRecord
from stem_torchrec.runtime.report_file import Report, escape
from stem_torchrec.training.watched_metric import SIGNS

_TITLES = {"auc": "AUC", "gauc": "gAUC", "logloss": "logloss", "ne": "NE", "pcoc": "PCOC", "rmse": "RMSE", "mae": "MAE"}
_DRAWN = ("auc", "logloss", "rmse")
_ONE_EVALUATION = "No lines over steps, as no run has more than one evaluation; --train.eval-every makes more."


def tasks_of(runs: Sequence[RunRecord]) -> list[str]:
    """The tasks of all runs."""
    return list(dict.fromkeys(task for run in runs for task in run.tasks))


def losses(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds the training loss of each task over steps."""
    report.text(
        "## Losses",
        "The loss of each task in training, by default binary cross-entropy: the mean over the labels that all ranks "
        "have read since the line of the log before.",
    )
    if not _charts(report, runs, {f"train/loss/{task}": f"loss of {task}" for task in tasks_of(runs)}):
        report.text("No run has logged two losses; it does so every --train.log-every steps.")


def metrics(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds the metrics of the best evaluation, and AUC and logloss of each task over steps."""
    report.text(
        "## Metrics",
        "Of the validation split, at the best evaluation, whose weights are kept; a dot marks it in the charts. AUC is "
        "how often a positive ranks above a negative, gAUC the same within each group of rows, such as a user's. NE is "
        "logloss divided by that of always predicting the mean label; of both, less is better. Calibration has PCOC. "
        "Of labels that are numbers or levels, AUC is of all pairs with different labels; RMSE and MAE are errors.",
    )
    rows = []
    known = {name for run in runs if run.best is not None for values in run.best.valid.values() for name in values}
    for task in tasks_of(runs):
        for run in runs:
            values = run.best.valid.get(task) if run.best is not None else None
            if values is not None and run.best is not None:
                row = {"task": task, "run": run.name, "step": f"{run.best.step:,}"}
                row |= {title: _number(values.get(name)) for name, title in _TITLES.items() if name in known}
                rows.append(row | {"rows": f"{values['rows']:,}", "positives": f"{values['positives']:,}"})
    if not rows:
        report.text("No run has made an evaluation yet.")
        return
    report.table(rows, text_columns=2)
    names = {f"valid/{task}/{name}": f"{_TITLES[name]} of {task}" for task in tasks_of(runs) for name in _DRAWN}
    if not _charts(report, runs, names):
        report.text(_ONE_EVALUATION)


def calibrations(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds predicted over observed positives over steps, a curve for each task that has predictions, and curves' gains.

    Raises UserError for a calibration.json that cannot be read.
    """
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
            f"No curve for {_names(without)}, as there are no predictions in the run folder. This makes them: "
            f"<code>stem-evaluate --run {folder} --predictions {folder}/{PREDICTIONS}</code>"
        )
    _before_and_after(report, runs)


def _before_and_after(report: Report, runs: Sequence[RunRecord]) -> None:
    rows = [
        {
            "task": task, "run": run.name, "curve": "isotonic" if task in run.calibration.isotonic else "Platt",
            "rows": f"{each.rows:,}", "positives": f"{each.positives:,}", "NE before": _number(each.ne_before),
            "NE after": _number(each.ne_after), "PCOC before": _number(each.pcoc_before),
            "PCOC after": _number(each.pcoc_after),
        }
        for run in runs
        if run.calibration is not None
        for task, each in run.calibration.judged.items()
    ]  # fmt: skip
    if rows:
        report.text("What the curves of stem-calibrate change, on rows that they were not fitted to:")
        report.table(rows, text_columns=3)
        for run in runs:
            if run.calibration is not None:
                fitted, judged = (escape(f"{each}") for each in (run.calibration.fitted_on, run.calibration.judged_on))
                kept = " ".join(f"{task} keeps its predictions: {why}." for task, why in run.calibration.kept.items())
                report.text(f"{escape(run.name)}: fitted on {fitted}, judged on {judged}. {escape(kept)}".rstrip())
    if without := [run for run in runs if run.calibration is None]:
        folder = escape(str(without[0].folder))
        report.text(f"No calibration of {_names(without)}. This makes one: <code>stem-calibrate --run {folder}</code>")


def _names(runs: Sequence[RunRecord]) -> str:
    return escape(", ".join(run.name for run in runs))


def _charts(
    report: Report, runs: Sequence[RunRecord], captions: Mapping[str, str], *, level: float | None = None
) -> bool:
    """Adds a chart for each name of the log of which some run has two numbers; returns whether there is one."""
    drawn = False
    for number, (name, caption) in enumerate(captions.items()):
        lines = [
            Line(i, series, mark=run.best.step if run.best is not None and name.startswith("valid/") else None)
            for i, run in enumerate(runs)
            if len((series := run.series(name)).steps)
        ]
        if any(len(line.series.steps) > 1 for line in lines):
            kind = "_".join(name.split("/")[:1] + name.split("/")[2:]) if name.startswith("valid/") else "loss"
            report.plot(f"{kind}_{number}", over_steps(lines, caption.split()[0], level=level), caption)
            drawn = True
    return drawn


def watched(run: RunRecord) -> str:
    """The value of the metric that a run is judged by, at its best evaluation, or `-`."""
    metric, _, task = run.config.train.metric.partition("/")
    if run.best is None or metric not in SIGNS:
        return "-"
    values = [run.best.valid[each].get(metric) for each in ([task] if task else run.tasks)]
    known = [value for value in values if value is not None]
    return _number(sum(known) / len(known)) if len(known) == len(values) else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
