"""How far predictions are from the labels: the share of positives by predicted probability, in bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stem_torchrec.runtime.errors import DamagedError, reason_of
from stem_torchrec.runtime.store_path import AnyPath

_CELLS = 8192
_LARGEST_LOGIT = 24.0
"""Beyond it a probability in float64 is 0 or 1 to the last digits."""
_POSITIVES_PER_POINT = 20
_POINTS = 20


@dataclass(frozen=True)
class Reliability:
    """Rows with a label, in parts that are predicted to have equally many positives."""

    predicted: NDArray[np.float64]
    """The mean prediction of each part (P,), ascending."""
    observed: NDArray[np.float64]
    """The share of positives of each part (P,)."""
    rows: int


def reliability_of(folder: AnyPath, tasks: Sequence[str]) -> dict[str, Reliability]:
    """The reliability of each task, from the files that `stem-evaluate --predictions` wrote.

    Labels with weights count by them. Tasks without a label in the files are left out. One batch of rows is in memory.

    Raises DamagedError for a file that is not such a file.
    """
    sums = {task: np.zeros((4, _CELLS)) for task in tasks}
    files: list[AnyPath] = [*folder.iterdir()]
    for file in sorted(files, key=lambda each: each.name):
        if file.name.endswith(".parquet"):
            try:
                _add_file(file, sums)
            except (OSError, ValueError) as error:
                raise DamagedError(
                    f"{file} holds no predictions that can be read ({reason_of(error)}); delete the folder, and make "
                    "it again with stem-evaluate --predictions."
                ) from error
    return {task: _parts(of_task) for task, of_task in sums.items() if of_task[1].sum() > 0}


def _add_file(file: AnyPath, sums: dict[str, NDArray[np.float64]]) -> None:
    with file.open("rb") as opened:
        parquet = pq.ParquetFile(opened)
        names = set(parquet.schema_arrow.names)
        tasks = [task for task in sums if {f"label/{task}", f"prediction/{task}"} <= names]
        kinds = [f"{kind}/{task}" for task in tasks for kind in ("label", "prediction", "weight")]
        for batch in parquet.iter_batches(columns=[name for name in kinds if name in names]):
            for task in tasks:
                _add_rows(batch, task, sums[task])


def _add_rows(batch: pa.RecordBatch, task: str, sums: NDArray[np.float64]) -> None:
    """Adds rows, weights, predictions and labels (4, cells), by the cell of the logit of their prediction."""
    batch = batch.filter(pc.is_valid(batch[f"label/{task}"]))
    label, prediction = (batch[f"{kind}/{task}"].to_numpy(zero_copy_only=False) for kind in ("label", "prediction"))
    named = f"weight/{task}" in batch.schema.names
    weight = batch[f"weight/{task}"].to_numpy(zero_copy_only=False) if named else np.ones(len(label))
    with np.errstate(divide="ignore"):
        logit = np.clip(np.log(prediction) - np.log1p(-prediction), -_LARGEST_LOGIT, _LARGEST_LOGIT)
    cell = ((logit / _LARGEST_LOGIT + 1) / 2 * (_CELLS - 1)).astype(np.int64)
    for row, values in enumerate((np.ones(len(label)), weight, weight * prediction, weight * label)):
        sums[row] += np.bincount(cell, weights=values, minlength=_CELLS)


def _parts(sums: NDArray[np.float64]) -> Reliability:
    rows, weights, predicted, positives = sums
    count = int(np.clip(positives.sum() // _POSITIVES_PER_POINT, 1, _POINTS))
    expected = np.cumsum(predicted)
    part = np.minimum((expected / max(expected[-1], np.finfo(float).tiny) * count).astype(int), count - 1)
    of_part = np.stack([np.bincount(part, weights=each, minlength=count) for each in (weights, predicted, positives)])
    weight, predicted, positives = of_part[:, of_part[0] > 0]
    return Reliability(predicted / weight, positives / weight, int(rows.sum()))
