"""The rows of a task that have a label, from predictions on disk."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stem_torchrec.calibration.curves import Curve, calibrate
from stem_torchrec.runtime.file_systems import g_pathmgr
from stem_torchrec.runtime.store_path import AnyPath


@dataclass(frozen=True)
class LabeledRows:
    """N rows of a task that have a label whose weight is not 0, in the order of the log."""

    rows: NDArray[np.int64]
    """Their numbers in the split, shape (N,)."""
    predictions: NDArray[np.float64]
    """Probabilities, shape (N,)."""
    positive: NDArray[np.bool_]
    """Whether the label is 1, shape (N,)."""
    weights: NDArray[np.float64]
    """Of the labels, above 0, shape (N,)."""

    def between(self, start: int, stop: int) -> "LabeledRows":
        """Those from row `start` up to row `stop` of the split, which is not among them."""
        chosen = (self.rows >= start) & (self.rows < stop)
        return LabeledRows(self.rows[chosen], self.predictions[chosen], self.positive[chosen], self.weights[chosen])

    def calibrated(self, curve: Curve) -> "LabeledRows":
        """The same rows with what the curve makes of their predictions."""
        return replace(self, predictions=calibrate(self.predictions, curve))


def read_labeled_rows(folder: AnyPath, task: str) -> LabeledRows:
    """The rows of a task from the files of all ranks that `metrics.predictions` wrote. Takes about 100 bytes a row."""
    tables = []
    paths: list[AnyPath] = [*folder.iterdir()]
    for path in sorted(paths, key=str):
        if path.name.endswith(".parquet"):
            with g_pathmgr.open(str(path), "rb") as opened:
                file = pq.ParquetFile(opened)
                wanted = ["row", f"label/{task}", f"prediction/{task}", f"weight/{task}"]
                tables.append(file.read(columns=[name for name in wanted if name in file.schema_arrow.names]))
    table = pa.concat_tables(tables).sort_by("row")
    labels = table[f"label/{task}"].to_numpy()
    weights = np.ones(len(labels))
    if f"weight/{task}" in table.column_names:
        weights = table[f"weight/{task}"].to_numpy().astype(np.float64)
    known = ~np.isnan(labels) & (weights > 0)
    predictions = table[f"prediction/{task}"].to_numpy().astype(np.float64)
    return LabeledRows(table["row"].to_numpy()[known], predictions[known], labels[known] == 1, weights[known])
