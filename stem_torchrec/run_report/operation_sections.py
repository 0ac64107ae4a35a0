"""The sections on how a run went: speed, starts and faults, lineage."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stem_torchrec.config.files import dump_config
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.data.footers import LAYOUT
from stem_torchrec.run_report.charts import Line, over_steps
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.runtime.report_file import Markup, Report, escape

_COUNTS = {
    "count/skipped_batches": "batches skipped, loss not finite",
    "count/skipped_rows": "bad rows skipped in the epoch",
    "count/failed_checkpoints": "checkpoints not written",
    "count/failed_best_weights": "best weights not written",
    "count/failed_deltas": "deltas not written",
}


def speed(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds samples a second and the time of a step, over steps and as a table."""
    report.text(
        "## Speed",
        "Of all ranks together, between two lines of the log, without evaluations and pauses for checkpoints. The "
        "first steps after a start are slower than the rest.",
    )
    rows = []
    for run in runs:
        samples, ms = run.series("train/samples_per_second").values, run.series("train/step_ms").values
        if len(ms):
            rows.append(
                {
                    "run": run.name, "ranks": _ranks(run), "rows per rank and step": f"{run.config.data.batch_size:,}",
                    "samples/s, median": f"{np.median(samples):,.0f}", "step ms, median": f"{np.median(ms):,.1f}",
                    "step ms, P90": f"{np.quantile(ms, 0.9):,.1f}", "lines of the log": f"{len(ms):,}",
                }
            )  # fmt: skip
    if not rows:
        report.text("No run has logged its speed.")
        return
    report.table(rows)
    for name, title in {"samples_per_second": "samples/s", "step_ms": "step ms"}.items():
        lines = [Line(i, series) for i, run in enumerate(runs) if len((series := run.series(f"train/{name}")).steps)]
        report.plot(name, over_steps(lines, title), title)


def faults(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds the starts of each run, and the counts of what went wrong without ending it."""
    report.text(
        "## Starts and faults",
        "A run that was interrupted, killed or restarted resumes after its newest checkpoint; the steps between that "
        "and its last line are made again. Times are rank 0's, in UTC. A run does not log why it ended or which rank "
        "was lost: its output and the scheduler tell that. A `-` stands for what a run does not log.",
    )
    starts = []
    for run in runs:
        for number, start in enumerate(run.starts):
            before = run.starts[number - 1] if number else None
            pause = "" if before is None else _duration((start.begin - before.end).total_seconds())
            starts.append(
                {
                    "run": run.name, "start": f"{number + 1}", "began": f"{start.begin:%Y-%m-%d %H:%M:%S}",
                    "stood still": pause, "resumed after step": f"{start.after:,}" if start.after else "",
                    "steps made again": f"{max(before.last_step - start.after, 0):,}" if before else "",
                    "last step": f"{start.last_step:,}", "ran": _duration((start.end - start.begin).total_seconds()),
                }
            )  # fmt: skip
    if starts:
        report.table(starts)
    report.table(
        [
            {"run": run.name, "starts": f"{len(run.starts)}" if run.starts else "-"}
            | {title: _count(run.last(name)) for name, title in _COUNTS.items()}
            | {"batches kept in nonfinite/": f"{run.kept_batches}"}
            | {"checkpoints of steps": ", ".join(f"{step:,}" for step in run.checkpoints) or "none"}
            for run in runs
        ]
    )


def lineage(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds what each run was made of: its log and rows, its options, and in which these differ between the runs."""
    report.text(
        "## Lineage",
        "Rows are told apart by what the footers of the Parquet files say; two runs with the same letters were trained "
        "or validated on the same rows. They are known once a run has ended.",
    )
    report.table(
        [
            {
                "run": run.name, "folder": _path(f"{run.folder}"), "log": _path(run.config.data.path or "synthetic"),
                "recipe": run.config.recipe or "-", "seed": f"{run.config.seed}", "resume": run.config.resume,
                "rows of train": _rows(run, "train"), "rows of valid": _rows(run, "valid"),
            }
            for run in runs
        ],
        text_columns=4,
    )  # fmt: skip
    _ancestors(report, runs)
    options = [_flat(to_dict(run.config)) for run in runs]
    names = list(dict.fromkeys(name for each in options for name in each))
    differing = [name for name in names if len({each.get(name, "") for each in options}) > 1]
    if len(runs) > 1:
        report.text("Options that differ:" if differing else "The runs have the same options.")
    if differing and len(runs) > 1:
        report.table(_values_of_options(runs, options, differing), text_columns=3)
    for run in runs:
        text = html.escape(dump_config(run.config).strip(), quote=False)
        report.text(f"<details><summary>config.yaml of {html.escape(run.name)}</summary><pre>{text}</pre></details>")


def _ancestors(report: Report, runs: Sequence[RunRecord]) -> None:
    """Adds which run each run started from, and that one, and so on; and what was carried into it."""
    started = [(run, run.start) for run in runs if run.start is not None and run.start.parents]
    if not started:
        return
    report.text("Runs that others started from, by --start-from, the last one first.")
    report.table(
        [
            {
                "run": run.name, "started from": _path(parent.run or parent.weights),
                "log": _path(parent.log.path) if parent.log else "?",
                "where": (parent.log.where or "") if parent.log else "?",
                "split by": _split(parent.log.split) if parent.log else "?", "before it": f"{number}",
                "step": "best" if parent.step is None else f"{parent.step:,}",
                "rows of train": f"{parent.log.rows.get('train', 0):,}" if parent.log else "?",
            }
            for run, start in started
            for number, parent in enumerate(start.parents, 1)
        ],
        text_columns=5,
    )  # fmt: skip
    for run, start in started:
        if start.carried is not None:
            table = html.escape(start.carried.format(), quote=False)
            name = html.escape(run.name)
            report.text(f"<details><summary>what was carried into {name}</summary><pre>{table}</pre></details>")


def _split(split: Mapping[str, Any]) -> str:
    """`time: day, train_until 20260425`, from the spec of a log; empty without one."""
    parts = [(kind, fields) for kind, fields in split.items() if isinstance(fields, Mapping)]
    return "; ".join(
        f"{kind}: {', '.join(f'{value}' if name == 'by' else f'{name} {value}' for name, value in fields.items())}"
        for kind, fields in parts
    )


def _values_of_options(
    runs: Sequence[RunRecord], options: Sequence[Mapping[str, str]], names: Sequence[str]
) -> list[dict[str, str]]:
    """A row for each value of an option, with the runs that have it."""
    rows = []
    for name in names:
        values = [of_run.get(name, "") for of_run in options]
        for value in dict.fromkeys(values):
            having = [run.name for run, each in zip(runs, values, strict=True) if each == value]
            rows.append({"option": f"--{name}", "value": value or "-", "runs": ", ".join(having)})
    return rows


def _path(path: str) -> Markup:
    """A path that a narrow column may break behind each part."""
    return Markup(escape(path).replace("/", "/<wbr>"))


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Options by the name that the command line has for them, without those of where a run is written."""
    flat: dict[str, str] = {}
    for name, value in options.items():
        key = prefix + name.replace("_", "-")
        if isinstance(value, dict) and value and not prefix:
            flat |= _flat(value, f"{key}.")
        elif key not in ("output-dir", "take-over"):
            flat[key] = f"{value}"
    return flat


def _rows(run: RunRecord, split: str) -> str:
    of_split = run.schema.splits.get(split)
    digest = run.best.rows.get(split, {}).get(LAYOUT, "") if run.best is not None else ""
    return " ".join([f"{of_split.rows:,}" if of_split else "?", *([f"({digest[:8]})"] if digest else [])])


def _ranks(run: RunRecord) -> str:
    return "-" if run.world_size is None else f"{run.world_size}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    """`48 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
