"""Looks at a trained run, or at two side by side: text, one HTML file, and all numbers as JSON."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from stem_torchrec.checkpoints.weights import find_weights
from stem_torchrec.inspection.change_section import change_section
from stem_torchrec.inspection.inspected_run import InspectedRun, inspect_tables, tables_of
from stem_torchrec.inspection.numbers_file import check_numbers_file, write_numbers
from stem_torchrec.inspection.options import InspectOptions, checked
from stem_torchrec.inspection.predicted_rows import PredictedRows, predict_rows
from stem_torchrec.inspection.prediction_sections import gate_section, metric_section
from stem_torchrec.inspection.sections import Section, Table, as_page, as_text
from stem_torchrec.inspection.table_sections import changed_section, similarity_section, table_section
from stem_torchrec.inspection.two_runs import changes, check_two, differences, only_one_has, run_whose_log_both_read
from stem_torchrec.models.table import table_choice_of
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.run_report.write_report import names_of
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.process import Process
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.sharding.placement import some
from stem_torchrec.tables import SHARED
from stem_torchrec.training.run_evaluation import EvaluateConfig
from stem_torchrec.training.run_folder import BEST_WEIGHTS, read_metrics

_STYLE = "td:nth-child(2) { overflow-wrap: anywhere; }"


def inspect_runs(options: InspectOptions, process: Process) -> list[Section]:
    """Prints what there is to know about the runs, and writes the page and the numbers.

    Memory holds the tables of one feature at a time, those of both runs; and for each predicted row and task a label
    and a prediction.

    Args:
        options: what to look at.
        process: the only rank.

    Raises UserError where a run, its weights, the log or a file is missing or does not fit, DamagedError for a damaged
    file of a run.
    """
    if process.world_size > 1:
        raise UserError(f"stem-inspect runs in one process, not in {process.world_size}; start it without a launcher.")
    options = checked(options)
    if options.json:
        check_numbers_file(Path(options.json))
    records = [
        RunRecord.read(path_of(run), name) for run, name in zip(options.runs, names_of(options.runs), strict=True)
    ]
    for record in records:
        find_weights(record.folder / BEST_WEIGHTS)
    groups = [_groups_of(record, options.tasks) for record in records]
    if len(records) == 2:
        check_two(*records, tables_only=options.tables_only)
    predicted = _predicted(options, records, process)
    runs = [
        inspect_tables(record, of_run, rows_of_run, rows=options.rows, top=options.top)
        for record, of_run, rows_of_run in zip(records, groups, predicted, strict=True)
    ]
    for record in records:
        check_unchanged(record)
    return _written(options, runs)


def check_unchanged(record: RunRecord) -> None:
    """Raises UserError for a run whose training has replaced the best weights since it was read."""
    if record.best is not None:
        step = read_metrics(record.folder, record.tasks).step
        if step != record.best.step:
            raise UserError(
                f"{record.folder} got other weights meanwhile, of step {step:,}; inspect it again, or a copy of it."
            )


def _groups_of(record: RunRecord, tasks: Sequence[str]) -> list[str]:
    """The groups to show: of the run's tasks those named, and shared; raises UserError for a task that it lacks."""
    for task in tasks:
        if task not in record.tasks:
            near = nearest(task, record.tasks) or "; give some of them."
            raise UserError(f"--tasks {task} is no task of {record.folder}, which has {some(record.tasks)}{near}")
    shown = [task for task in record.tasks if not tasks or task in tasks]
    return list(dict.fromkeys([*shown, *table_choice_of(record.config.model).groups_of_tables(shown), SHARED]))


def _predicted(options: InspectOptions, records: Sequence[RunRecord], process: Process) -> list[PredictedRows | None]:
    """What each run predicts, on the log of the first one, or of the other one if only that suits both."""
    if options.tables_only:
        return [None] * len(options.runs)
    data, runs = options.data, list(options.runs)
    if data.path is None and len(records) == 2 and run_whose_log_both_read(*records) is records[1]:
        runs.reverse()
    predicted: dict[str, PredictedRows] = {}
    for run in runs:
        config = EvaluateConfig(run, data, options.split)
        predicted[run] = predict_rows(config, process, rows=options.rows, grown=bool(predicted))
        data = replace(data, path=predicted[run].path)
        # Sharded modules live in reference cycles; without this two models would be in memory.
        gc.collect()
    return [predicted[run] for run in options.runs]


def _written(options: InspectOptions, runs: Sequence[InspectedRun]) -> list[Section]:
    """Compares two runs, prints the sections and writes the files."""
    first, *others = runs
    between, only, measured = [], [], None
    if others:
        only = only_one_has(first.record, others[0].record)
        own, before = (tables_of(run.record) for run in runs)
        between = changes(own, before, list(first.record.columns.sparse), first.groups, top=options.top)
        if first.predicted is not None and others[0].predicted is not None:
            tasks = [task for task in first.tasks if task in others[0].tasks]
            measured = differences(first.predicted, others[0].predicted, tasks)
    sections = [Section("Runs", [Table([_row_of(run) for run in runs], 3), _when(options, first)])]
    if only:
        sections[0].parts.append(" ".join(only))
    if first.predicted is not None:
        sections += [metric_section(runs, measured), gate_section(runs)]
    sections += [table_section(runs), similarity_section(runs)]
    if others:
        sections.append(change_section(first, others[0], between))
    changed = {each.feature: each.changed for each in (between if others else first.features)}
    sections.append(changed_section(first, changed, since=f"those of {others[0].name}" if others else first.start.name))
    log_rank0(as_text(sections))
    title = " beside ".join(run.name for run in runs)
    if options.out:
        as_page(f"Inside {title}", sections, style=_STYLE).write_page(Path(options.out))
        log_rank0(f"report: {options.out}, of {', '.join(run.name for run in runs)}")
    if options.json:
        write_numbers(Path(options.json), runs, differences=measured, changes=between, only=only)
        log_rank0(f"numbers: {options.json}")
    return sections


def _row_of(run: InspectedRun) -> dict[str, str]:
    record = run.record
    return {
        "run": run.name, "model": f"{record.config.model.arch}, {record.config.model.layout}",
        "tasks": some(run.tasks), "best step": "-" if record.best is None else f"{record.best.step:,}",
        "tables": f"{sum(len(each.tables) for each in run.features):,}",
        "rows of tables": f"{sum(table.rows for each in run.features for table in each.tables.values()):,}",
    }  # fmt: skip


def _when(options: InspectOptions, run: InspectedRun) -> str:
    """Which rows were predicted, and when."""
    rows = "No rows are predicted."
    if run.predicted is not None:
        rows = f"Predicted are {run.predicted.rows:,} rows of {run.predicted.path}/{options.split}."
    return f"Best weights, as of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. {rows}"
