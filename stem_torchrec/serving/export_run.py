"""Exports a run as a bundle: a folder that scores rows without the run, TorchRec or FBGEMM."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from stem_torchrec.calibration.calibration_file import CALIBRATION_FILE, read_calibration
from stem_torchrec.checkpoints.weights import find_weights
from stem_torchrec.config.path_fields import with_paths
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import SCHEMA_FILE, load_schema, save_schema
from stem_torchrec.deltas.copied_run import applied_to_weights
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.path_options import InputFolder, LocalFolder, LocalOutput
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import AnyPath, path_of
from stem_torchrec.serving.export_program import compile_program, export_program, save_program
from stem_torchrec.serving.manifest import (
    COMPILED_FILE,
    DELTA,
    PROGRAM_FILE,
    TABLES_FILE,
    Manifest,
    TablePrecision,
    file_entries,
    installed_versions,
    write_manifest,
)
from stem_torchrec.serving.new_folder import new_folder
from stem_torchrec.serving.program import this_machine
from stem_torchrec.serving.run_log import copy_transforms, folder_of_log, schema_of_bundle
from stem_torchrec.serving.trained_run import TrainedRun, open_trained_run, unchanged_weights
from stem_torchrec.training.best_by_task import read_by_task
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.evaluation_outputs import check_apart
from stem_torchrec.training.run_folder import BEST_WEIGHTS, CONFIG_FILE, METRICS_FILE, StoredMetrics, read_metrics


@dataclass(frozen=True)
class ExportConfig:
    """Which run to export, and how."""

    run: Annotated[InputFolder, tyro.conf.arg(aliases=["--run-dir"])] = ""
    """The run folder that training wrote."""
    out: LocalOutput = ""
    """The folder of the bundle, which must not exist."""
    tasks: tuple[str, ...] = ()
    """The tasks to score, all of the run by default; what only the others need is left out."""
    tables: TablePrecision = "fp32"
    """Numbers in the tables; int8 has a scale and an offset in each row, 24 bytes where fp32 has 64."""
    compile: bool = False
    """Also compiles the program for this machine by AOTInductor; takes a C++ compiler one to two minutes."""
    calibration: Literal["run", "none"] = "run"
    """run takes the run's calibration.json along, if it has one, and `score` applies it; none leaves it out."""
    log: LocalFolder | None = None
    """Folder of the log whose transforms.json and vocabularies the bundle takes, by default the run's own."""
    take_over: bool = False
    """Takes the new folder from another export that runs."""


def export_run(config: ExportConfig) -> None:
    """Writes the bundle `config.out` from the run's best weights; docs/serving.md lists its files.

    Memory holds the dense weights, and of tables in fp16 and int8 the largest one.

    Raises UserError, without leaving the folder, if the run, its weights or its log are missing or damaged, the folder
    exists, or a training replaces the weights meanwhile; OSError if the folder cannot be written.
    """
    if not config.run or not config.out:
        raise UserError("--run or --out is missing; give the run to export and the new folder: --run RUN --out BUNDLE.")
    config = with_paths(config)
    check_apart(config.out, config.run, "--out")
    run, out = path_of(config.run), Path(config.out)
    trained, schema = load_config(str(run / CONFIG_FILE)), load_schema(str(run))
    columns = Columns.select(schema, features=trained.data.features, labels=trained.data.labels)
    tasks = _tasks(config.tasks, columns.labels)
    metrics = read_metrics(run, columns.labels) if (run / METRICS_FILE).exists() else None
    recorded = {} if metrics is None else metrics.rows
    log = folder_of_log(config.log, trained, schema=schema, columns=columns, rows=recorded)
    versions = installed_versions()
    with new_folder(out, take_over=config.take_over) as folder:
        with unchanged_weights(run, columns.labels) as weights:
            delta = _delta(run)
            calibration = None if config.calibration == "none" else _calibration(run, weights)
            model = open_trained_run(trained, columns, run, tasks=tasks, precision=config.tables)
            model.write_tables(folder / TABLES_FILE)
        program = export_program(model.served, len(columns.dense))
        programs = [PROGRAM_FILE, COMPILED_FILE] if config.compile else [PROGRAM_FILE]
        if config.compile:
            compile_program(program, folder / COMPILED_FILE)
        save_program(program, folder / PROGRAM_FILE)
        save_schema(schema_of_bundle(schema, columns, tasks), str(folder))
        read = replace(Columns.select(load_schema(str(folder))), labeled=False)
        transforms = [] if log is None else copy_transforms(log, folder, read)
        if calibration is not None:
            (folder / CALIBRATION_FILE).write_text(calibration)
        calibrations = [] if calibration is None else [CALIBRATION_FILE]
        manifest = Manifest(
            tasks=tasks,
            arch=trained.model.arch,
            precision=config.tables,
            tables=tuple(model.served.tables),
            raw=bool(transforms),
            versions=versions,
            run=_lineage(run, weights, metrics) | delta,
            files=file_entries(folder, [*programs, TABLES_FILE, SCHEMA_FILE, *transforms, *calibrations]),
            compiled=this_machine() if config.compile else None,
            kinds={task: kind for task, kind in columns.not_binary.items() if task in tasks},
        )
        write_manifest(folder, manifest)
    rows = "raw rows" if manifest.raw else "rows of ids"
    curves = "" if calibration is None else f" and {CALIBRATION_FILE}"
    log_rank0(f"\n{out} scores {', '.join(tasks)} of {rows}, with the weights{curves} of {run}")
    log_rank0(_sizes(model, tasks, columns.labels))


def _tasks(wanted: Sequence[str], trained: Sequence[str]) -> tuple[str, ...]:
    """The tasks to serve, in the order of the run; raises UserError for one that the run does not have."""
    for task in wanted:
        if task not in trained:
            raise UserError(
                f"--tasks {task} is not a task of the run, only {', '.join(trained)}{nearest(task, trained)}"
            )
    return tuple(task for task in trained if task in (wanted or trained))


def _calibration(run: AnyPath, weights: str) -> str | None:
    """The text of the calibration.json of a run, None if it has none; raises UserError for one of other weights."""
    path = run / CALIBRATION_FILE
    if not path.exists():
        return None
    read_calibration(path, weights=weights)
    return path.read_text()


def _lineage(run: AnyPath, weights: str, metrics: StoredMetrics | None) -> dict[str, Any]:
    """The folder of a run, the checksums of its configuration and weights, and its best evaluation, if one ended."""
    config = (run / CONFIG_FILE).read_text()
    lineage = {"folder": str(run), "config_sha256": hashlib.sha256(config.encode()).hexdigest(), "weights": weights}
    by_task = read_by_task(run)
    if by_task is not None:
        return lineage | {"steps": by_task.steps, "valid": by_task.valid}
    return lineage | ({} if metrics is None else {"step": metrics.step, "valid": metrics.valid})


def _delta(run: AnyPath) -> dict[str, Any]:
    """The delta that a copy is at, with its run and step; nothing for a run that trained."""
    applied = applied_to_weights(find_weights(run / BEST_WEIGHTS))
    return {} if applied is None else {"folder": applied.run, "step": applied.step, DELTA: asdict(applied)}


def _sizes(run: TrainedRun, tasks: Sequence[str], trained: Sequence[str]) -> str:
    """What the bundle takes in MB, beside what all tasks of the run take."""
    model, *others = run.models
    text = f"tables {_mb(run.table_bytes)} ({model.precision}), other weights {_mb(run.dense_bytes)}"
    if others:
        parts = "; ".join(", ".join(part) for part in run.parts)
        return f"{text}: {len(run.models)} models, as the tasks have weights of their own ({parts})"
    if len(tasks) == len(trained):
        return text
    text += f"; all {len(trained)} tasks take {_mb(model.run_table_bytes)} and {_mb(model.run_dense_bytes)}"
    unserved = [group for group in model.served.groups if group in trained and group not in tasks]
    if unserved:
        kept = f"{', '.join(unserved)}, {_mb(model.bytes_of_groups(unserved))}"
        text += (
            f"\nnote: {', '.join(tasks)} alone keeps the tables of {kept}: its gate reads the experts of every group"
        )
    return text


def _mb(count: int) -> str:
    """Bytes as MB, to the KB."""
    return f"{count / 1e6:,.3f} MB"
