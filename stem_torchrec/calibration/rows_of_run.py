"""Which rows a run is calibrated on: some to fit, and later ones to judge, never the same."""

import posixpath
from dataclasses import dataclass

from stem_torchrec.calibration.calibration_file import RowsOfLog
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups, with_labels
from stem_torchrec.data.folder import data_folder
from stem_torchrec.data.footers import fingerprint, fingerprint_of
from stem_torchrec.data.label_kinds import refusal_of_kinds
from stem_torchrec.data.schema import Schema, load_schema
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.file_systems import g_pathmgr
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.run_folder import CONFIG_FILE, METRICS_FILE, read_metrics

_FITTED = "valid"


@dataclass(frozen=True)
class RowsOfRun:
    """The tasks of a run and the rows of its log."""

    tasks: tuple[str, ...]
    fitted: RowsOfLog
    judged: RowsOfLog
    not_binary: tuple[str, ...] = ()
    """Tasks that predict no probabilities, and get no curve."""


def rows_of_run(run: str, *, log: str | None, judge_on: str | None) -> RowsOfRun:
    """The rows to fit and those to judge on.

    Args:
        run: the run folder.
        log: another log than the run's.
        judge_on: the split to judge on; by default test, or the second half of valid where the log has no test split
            with labels. The log needs no training split.

    Raises UserError where the run or log are missing, and where a part has the rows of another, or those that the run
    was trained on: a run that has ended has recorded them, and of another one its own log tells, if it still exists.
    """
    config = load_config(str(path_of(run) / CONFIG_FILE))
    path = log or data_folder(config.data)
    schema = load_schema(path)
    columns = Columns.select(schema, features=config.data.features, labels=config.data.labels)
    refusal = refusal_of_kinds(columns, "stem-calibrate", fix=f"give another run than {run}, with a binary task")
    if refusal and len(columns.not_binary) == len(columns.labels):
        raise UserError(refusal)
    train, fitted, later = (
        _labeled_rows(path, split, schema, columns)
        if split in (_FITTED, judge_on) or g_pathmgr.isdir(posixpath.join(path, split))
        else None
        for split in ("train", _FITTED, judge_on or "test")
    )
    if fitted is None:
        raise UserError(f"the rows of {path}/{_FITTED} have no labels; give a log that has some with --data.path.")
    if judge_on is not None and later is None:
        raise UserError(f"the rows of {path}/{judge_on} have no labels; give another --judge-on.")
    trained_on = {"" if train is None else train.fingerprint, _trained_on(run, config)} - {""}
    for rows, others, use in (
        (fitted, trained_on, "the run was trained on"),
        (later, trained_on, "the run was trained on"),
        (later, {fitted.fingerprint}, "the curves are fitted to"),
    ):
        if rows is not None and rows.fingerprint in others:
            raise UserError(
                f"{path}/{rows.split} has the rows that {use}, which tell nothing about later ones; give a log with "
                "others by --data.path, or other rows by --judge-on."
            )
    if later is None:
        half = fitted.stop // 2
        later = RowsOfLog(path, _FITTED, half, fitted.stop, fitted.fingerprint)
        fitted = RowsOfLog(path, _FITTED, 0, half, fitted.fingerprint)
    return RowsOfRun(columns.labels, fitted, later, tuple(columns.not_binary))


def _trained_on(run: str, config: TrainConfig) -> str:
    """The fingerprint of the run's training rows; empty where neither the run nor its log tell them."""
    folder, log = path_of(run), config.data.path
    recorded = read_metrics(folder).rows if (folder / METRICS_FILE).exists() else {}
    if "train" in recorded:
        return fingerprint_of(recorded["train"])
    if not log or not g_pathmgr.isdir(posixpath.join(log, "train")):
        return ""
    schema = load_schema(log)
    columns = Columns.select(schema, features=config.data.features, labels=config.data.labels)
    return fingerprint(find_row_groups(log, "train", schema, columns, needs_labels=False))


def _labeled_rows(path: str, split: str, schema: Schema, columns: Columns) -> RowsOfLog | None:
    """All rows of a split; None where they have no labels."""
    row_groups = find_row_groups(path, split, schema, columns, needs_labels=False)
    if not with_labels(columns, row_groups).labeled:
        return None
    rows = sum(row_group.rows for row_group in row_groups)
    return RowsOfLog(path, split, 0, rows, fingerprint(row_groups))
