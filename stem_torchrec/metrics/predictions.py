"""Predictions as Parquet files, one for each rank, written batch by batch."""

from contextlib import suppress
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from stem_torchrec.data.columns import Columns
from stem_torchrec.runtime.file_systems import g_pathmgr
from stem_torchrec.runtime.paths import move
from stem_torchrec.runtime.whole_file import naming_file

_ROW_GROUP = 65_536


def predictions_of(scores: Tensor, columns: Columns) -> Tensor:
    """Probabilities of binary tasks, and the numbers predicted for others, (B, T) of (B, T), in fp64 on the host.

    Of scores: logits of binary tasks, and the numbers themselves.
    """
    # float64 keeps probabilities distinct that float32 would round to the same number, up to logits of about 24.
    wide = scores.cpu().double()
    is_binary = torch.tensor([columns.is_binary(task) for task in columns.labels])
    return torch.where(is_binary, wide.sigmoid(), wide)


class PredictionsFile:
    """Writes `folder/part-RANK.parquet`, which exists under this name when it is complete.

    About one row group of predictions is in memory.

    Args:
        folder: an existing folder; any path of iopath.
        columns: of the log.
        rank: of this process.

    Example::

        with PredictionsFile("predictions", columns, rank=0) as file:
            file.write(rows, groups, labels, logits)

        # row   user_id   label/like   prediction/like   weight/like
        # 0     17        1.0          0.83              0.5           row of the split; columns.group; a probability,
        # 1     17        null         0.02              2.0           or a number; null for a missing label

    The column of weights exists where rows or labels have them, those of labels where the log has labels.
    """

    def __init__(self, folder: str, columns: Columns, *, rank: int) -> None:
        self._columns = columns
        self._path = f"{folder}/part-{rank:05d}.parquet"
        self._unfinished = f"{self._path}.new"
        self._file = g_pathmgr.open(self._unfinished, "wb")
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []

    def write(
        self,
        rows: Tensor,
        groups: Tensor | pa.Array | None,
        labels: Tensor,
        scores: Tensor,
        weights: Tensor | None = None,
    ) -> None:
        """Adds rows (B,) with their groups (B,), numbers or text, labels (B, T), NaN where missing, and scores (B, T).

        The scores are the logits of binary tasks, and the predictions of others.
        `weights` are those of the labels, (B, T), where the columns have some.
        """
        predictions = predictions_of(scores, self._columns)
        table = {"row": rows.numpy()}
        if self._columns.group is not None and groups is not None:
            table[self._columns.group] = groups.numpy() if isinstance(groups, Tensor) else groups
        for i, task in enumerate(self._columns.labels):
            if self._columns.labeled:
                table[f"label/{task}"] = pa.array(labels[:, i].numpy(), from_pandas=True)
            table[f"prediction/{task}"] = predictions[:, i].numpy()
            if weights is not None:
                table[f"weight/{task}"] = weights[:, i].numpy()
        self._pending.append(pa.table(table))
        if sum(each.num_rows for each in self._pending) >= _ROW_GROUP:
            with naming_file(self._path):
                self._flush()

    def _flush(self) -> None:
        table = pa.concat_tables(self._pending)
        self._writer = self._writer or pq.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)
        self._pending = []

    def __enter__(self) -> "PredictionsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._complete()
        finally:
            if g_pathmgr.exists(self._unfinished):
                # What closing could not write is of no use.
                with suppress(OSError):
                    self._file.close()
                g_pathmgr.rm(self._unfinished)

    def _complete(self) -> None:
        with naming_file(self._path):
            if self._pending:
                self._flush()
            if self._writer is not None:
                self._writer.close()
            self._file.close()
            move(self._unfinished, self._path)
