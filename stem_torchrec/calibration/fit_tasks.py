"""The curves of all tasks from predictions on disk, and NE and PCOC before and after them."""

import math
from dataclasses import replace
from typing import Literal

from stem_torchrec.calibration.calibration_file import BeforeAndAfter, Calibration
from stem_torchrec.calibration.fit import fit_isotonic, fit_platt
from stem_torchrec.calibration.judge import judge
from stem_torchrec.calibration.labeled_rows import LabeledRows, read_labeled_rows
from stem_torchrec.calibration.rows_of_run import RowsOfRun
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.store_path import AnyPath

Method = Literal["isotonic", "platt"]


def fit_tasks(predictions: AnyPath, rows: RowsOfRun, *, method: Method, weights: str) -> Calibration:
    """Fits a curve for each task that has labels of both kinds in the rows to fit; the others get none.

    Args:
        predictions: a folder with the predictions of a split in a folder of its name.
        rows: to fit and to judge on.
        method: of the curves.
        weights: checksum of the weights that made the predictions.

    Raises UserError where no task gets a curve.
    """
    fitted, judged = rows.fitted, rows.judged
    calibration = Calibration(weights=weights, fitted_on=fitted, judged_on=judged)
    for task in rows.tasks:
        of_task = read_labeled_rows(predictions / fitted.split, task).between(fitted.start, fitted.stop)
        if of_task.has_both_kinds:
            calibration = _with_curve(calibration, task, of_task, method)
    if not calibration.curves:
        raise UserError(f"no task has labels of both kinds in {fitted}; give a log that has some with --data.path.")
    for task, curve in calibration.curves.items():
        of_task = read_labeled_rows(predictions / judged.split, task).between(judged.start, judged.stop)
        before, after = judge(of_task), judge(of_task.calibrated(curve))
        result = BeforeAndAfter(
            rows=len(of_task.rows),
            positives=int(of_task.positive.sum()),
            ne_before=_finite(before.ne),
            ne_after=_finite(after.ne),
            pcoc_before=_finite(before.pcoc),
            pcoc_after=_finite(after.pcoc),
        )
        calibration = replace(calibration, judged={**calibration.judged, task: result})
    return calibration


def _with_curve(calibration: Calibration, task: str, rows: LabeledRows, method: Method) -> Calibration:
    try:
        if method == "isotonic":
            return replace(calibration, isotonic={**calibration.isotonic, task: fit_isotonic(rows)})
        return replace(calibration, platt={**calibration.platt, task: fit_platt(rows)})
    except UserError as error:
        raise UserError(f"task {task!r} in {calibration.fitted_on}: {error}") from error


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
