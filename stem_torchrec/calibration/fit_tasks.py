"""The curves of all tasks from predictions on disk, and NE and PCOC before and after them."""

import math
from dataclasses import replace

from stem_torchrec.calibration.calibration_file import BeforeAndAfter, Calibration
from stem_torchrec.calibration.curves import Curve, IsotonicCurve, PlattCurve
from stem_torchrec.calibration.fit import Method, NoCurveError, fit
from stem_torchrec.calibration.judge import judge
from stem_torchrec.calibration.labeled_rows import read_labeled_rows
from stem_torchrec.calibration.rows_of_run import RowsOfRun
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.store_path import AnyPath


def fit_tasks(predictions: AnyPath, rows: RowsOfRun, *, method: Method, weights: str) -> Calibration:
    """Fits a curve for each task that has one in the rows to fit; the others keep their predictions.

    Args:
        predictions: a folder with the predictions of a split in a folder of its name.
        rows: to fit and to judge on.
        method: of the curves.
        weights: checksum of the weights that made the predictions.

    Raises UserError where no task gets a curve.
    """
    fitted, judged = rows.fitted, rows.judged
    curves: dict[str, Curve] = {}
    kept: dict[str, str] = {}
    for task in (each for each in rows.tasks if each not in rows.not_binary):
        of_task = read_labeled_rows(predictions / fitted.split, task).between(fitted.start, fitted.stop)
        try:
            curves[task] = fit(of_task, method)
        except NoCurveError as error:
            kept[task] = str(error)
    if not curves:
        reasons = ", ".join(f"{task!r} ({reason})" for task, reason in kept.items())
        raise UserError(f"no task gets a curve from {fitted}: {reasons}; give a log with more rows by --data.path.")
    calibration = Calibration(
        weights=weights,
        fitted_on=fitted,
        judged_on=judged,
        isotonic={task: curve for task, curve in curves.items() if isinstance(curve, IsotonicCurve)},
        platt={task: curve for task, curve in curves.items() if isinstance(curve, PlattCurve)},
        kept=kept,
    )
    for task, curve in curves.items():
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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
