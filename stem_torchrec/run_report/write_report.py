"""Writes the page of some runs: one HTML file that needs no other one."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import tyro
from annotated_types import Interval

from stem_torchrec.run_report.charts import COLORS, DASHES, swatch
from stem_torchrec.run_report.gate_section import gates
from stem_torchrec.run_report.metric_sections import calibrations, losses, metrics, watched
from stem_torchrec.run_report.operation_sections import faults, lineage, speed
from stem_torchrec.run_report.plan_section import plans
from stem_torchrec.run_report.projector import write_projector
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import PathOption, checked_path
from stem_torchrec.runtime.report_file import Report, check_page_file, escape
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.training.best_by_task import note_of_mean
from stem_torchrec.training.evaluation_outputs import check_apart

LocalHtml = Annotated[str, PathOption("file", writes=True, local=True)]
_MOST_RUNS = 20
_STYLE = """
fieldset { border: 1px solid var(--line); border-radius: 6px; display: flex; flex-wrap: wrap; gap: .3em 1.4em; }
fieldset { background: var(--paper); margin: 1em 0; min-width: 0; }
@media (min-width: 701px) { fieldset { position: sticky; top: 0; z-index: 1; max-height: 30vh; overflow-y: auto; } }
label, .legend span { display: flex; align-items: center; gap: .45em; }
.legend { display: flex; flex-wrap: wrap; gap: .2em 1.4em; font-size: .93em; margin: .8em 0; }
.swatch { width: 30px; height: 6px; flex: none; } .swatch path { stroke-width: 2.2; fill: none; }
@media (hover: hover) { figure svg:has([class^=run-]:hover) [class^=run-]:not(:hover) { opacity: .2; } }
@media print { fieldset { position: static; } fieldset input { display: none; } }"""


@dataclass(frozen=True)
class ReportOptions:
    """Which runs to show, and where."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """The run folders that training wrote, local or in a store; of runs that train as well."""
    out: LocalHtml = ""
    """The HTML file; one that an earlier report wrote is replaced. It may be left out with --projector."""
    projector: tuple[str, ...] = ()
    """Tables, as like/user_id, that TensorBoard's projector shows: they are written into tensorboard/ of each run
    folder, with raw values of the ids where the log has a vocabulary."""
    projector_rows: Annotated[int, Interval(ge=1, le=100_000)] = 10_000
    """Rows of each table for the projector: those of the first ids, which are the most frequent ones."""


def write_report(options: ReportOptions) -> str:
    """Writes the page, the projector or both, and returns a line that names each.

    Raises UserError where a run or the file is missing or cannot be used, DamagedError for a damaged file of a run.
    """
    if not options.runs or not (options.out or options.projector):
        raise UserError("RUN or --out is missing; give run folders and a file: stem-report RUN RUN --out FILE.html.")
    folders = list(dict.fromkeys(checked_path(run, PathOption("folder")) for run in options.runs))
    if len(folders) > _MOST_RUNS:
        raise UserError(f"{len(folders)} runs are too many for a page; give at most {_MOST_RUNS}.")
    if options.out:
        for folder in folders:
            check_apart(options.out, folder, "--out")
        check_page_file(Path(options.out))
    runs = [RunRecord.read(path_of(folder), name) for folder, name in zip(folders, names_of(folders), strict=True)]
    lines = []
    if options.out:
        file = Path(options.out)
        page = page_of(runs)
        file.parent.mkdir(parents=True, exist_ok=True)
        page.write_page(file)
        lines.append(f"report: {file}, of {', '.join(run.name for run in runs)}")
    if options.projector:
        lines += [write_projector(run, options.projector, rows=options.projector_rows) for run in runs]
    return "\n".join(lines)


def page_of(runs: Sequence[RunRecord]) -> Report:
    """The page of these runs, over one another."""
    hidden = "".join(f"\nbody:has(#show-{i}:not(:checked)) .run-{i} {{ display: none; }}" for i in range(len(runs)))
    title = f"Run {escape(runs[0].name)}" if len(runs) == 1 else f"{len(runs)} runs"
    report = Report(title, style=_STYLE + hidden, lines={f"run-{i}": run.name for i, run in enumerate(runs)})
    report.table(
        [
            {
                "run": run.name, "model": f"{run.config.model.arch}, {run.config.model.layout}",
                "ranks": "-" if run.world_size is None else f"{run.world_size}", "steps": f"{run.steps:,}",
                "state": "ended" if run.best is not None and run.best.finished else "not ended",
                "best step": "-" if run.best is None else f"{run.best.step:,}", "judged by": run.config.train.metric,
                "best": watched(run),
            }
            for run in runs
        ],
        text_columns=2,
    )  # fmt: skip
    report.text(f"As of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.")
    for run in runs:
        if (note := note_of_mean(run.folder, "the best step and metrics here are")) is not None:
            report.text(f"Note: {escape(note)}.")
    if len(runs) > 1:
        report.text(_switches(runs))
    for section in (losses, metrics, calibrations, gates, speed, plans, faults, lineage):
        section(report, runs)
    return report


def names_of(folders: Sequence[str]) -> list[str]:
    """The last parts of paths, as many as tell them apart.

    Example::

        names_of(["runs/a/seed_0", "runs/b/seed_0"])  # ["a/seed_0", "b/seed_0"]
    """
    parts = [Path(folder).resolve().parts if "://" not in folder else folder.split("/") for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return list(folders)


def _switches(runs: Sequence[RunRecord]) -> str:
    """A box for each run, which hides its lines; it needs no script."""
    boxes = "".join(
        f'<label><input type="checkbox" id="show-{i}" checked>'
        f"{swatch(f'c{i % COLORS}', i // COLORS % DASHES)}{html.escape(run.name)}</label>"
        for i, run in enumerate(runs)
    )
    return f"<fieldset><legend>Lines of</legend>{boxes}</fieldset>"
