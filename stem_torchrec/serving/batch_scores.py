"""Probabilities of the rows of a file, with a place and a reason for each row that cannot be scored."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stem_torchrec.data.checks import bad_rows, prepared
from stem_torchrec.expressions.value_types import FLOAT, INT, TEXT, ValueType
from stem_torchrec.preparation.raw_files.cell_types import WORDS
from stem_torchrec.preparation.transforms import apply_transforms
from stem_torchrec.runtime.errors import DataError, UserError
from stem_torchrec.serving.bundle import Bundle
from stem_torchrec.serving.raw_values import LIST_OF, Given, TypeMismatchError, is_list, typed, typed_or_lists
from stem_torchrec.serving.row_files import RowBatch
from stem_torchrec.serving.text_values import Values

_Reader = Callable[[Given, ValueType], Values]
_SHOWN = 60
"""Characters of a value that an error shows."""


class BatchScores:
    """Scores batches of rows.

    Args:
        bundle: scores the rows.
        path: of their file, for errors.
        nulls: whether a row with a wrong value gets null predictions; else it is an error.

    Example::

        BatchScores(bundle, "rows.jsonl", nulls=False)(batch)
        # click   buy
        # 0.31    0.08
    """

    def __init__(self, bundle: Bundle, path: str, *, nulls: bool) -> None:
        self._bundle, self._path, self._nulls = bundle, path, nulls
        self.wrong_rows = 0
        """Rows so far that got null predictions."""
        self.first_wrong = ""
        """The sentence for the first of them."""

    def __call__(self, batch: RowBatch) -> pa.Table:
        """The prediction of each task, as a column of float32; see `Bundle.score`.

        Raises DataError for the first row with a wrong value, with its file and line, and UserError for a column of
        another type.
        """
        wrong = dict(batch.broken)
        columns = {name: self._typed(name, batch, wrong) for name in self._bundle.input_columns}
        self._refuse(wrong, batch)
        rows = pa.table(columns)
        try:
            scores = self._scored(rows, wrong)
        except DataError:
            for positions, reason in self._unfit(rows):
                for position in positions:
                    wrong.setdefault(int(position), reason)
            self._refuse(wrong, batch)
            scores = self._scored(rows, wrong)
        if wrong:
            self.first_wrong = self.first_wrong or self._sentence(wrong, batch)
            self.wrong_rows += len(wrong)
        return scores

    def _typed(self, name: str, batch: RowBatch, wrong: dict[int, str]) -> pa.Array:
        """A column as the bundle reads it, null where it is wrong."""
        given, wanted = batch.columns[name], self._bundle.raw_types.get(name)
        read: _Reader = typed
        if wanted is None:
            if batch.lines is None:
                # Parquet has the columns as the files of the log have them.
                return given
            wanted, read = self._type_of_log(name)
        try:
            values, bad = read(given, wanted)
        except TypeMismatchError as error:
            raise UserError(
                f"{self._path}: column {name!r} must hold {wanted}, but {error}; cast it where the file is written."
            ) from None
        for row in np.flatnonzero(bad):
            value = given[int(row)].as_py() if isinstance(given, pa.Array) else given[int(row)]
            kind = LIST_OF[wanted] if read is typed_or_lists and is_list(value) else wanted
            what = "text" if kind == TEXT else WORDS[kind]
            wrong.setdefault(int(row), f"column {name!r} has {_shown(value)}, which is not {what}")
        return values

    def _type_of_log(self, name: str) -> tuple[ValueType, _Reader]:
        """The type of the values of a column of a log, and what reads it."""
        columns = self._bundle.columns
        if name in map(columns.column_of, columns.dense):
            return FLOAT, typed
        return (INT if name in map(columns.column_of, columns.sparse) else FLOAT), typed_or_lists

    def _scored(self, rows: pa.Table, wrong: Mapping[int, str]) -> pa.Table:
        """The predictions, null for wrong rows."""
        if not wrong:
            return self._bundle.score(rows)
        right = np.setdiff1d(np.arange(rows.num_rows), np.fromiter(wrong, dtype=np.int64))
        scores = self._bundle.score(rows.take(right))
        places = np.full(rows.num_rows, -1, dtype=np.int64)
        places[right] = np.arange(len(right))
        return scores.take(pa.array(places, mask=places < 0))

    def _unfit(self, rows: pa.Table) -> Iterator[tuple[NDArray[np.int64], str]]:
        """Rows with a value that training would refuse, with a reason that is the first one's."""
        [batch] = rows.combine_chunks().to_batches()
        columns = self._bundle.columns
        if self._bundle.transforms is not None:
            batch = apply_transforms(self._bundle.transforms, batch)
        log_rows = pa.Table.from_batches([batch])
        log_rows = pa.table(
            {name: prepared(log_rows.column(columns.column_of(name)), name, columns) for name in columns.names}
        )
        for name in columns.names:
            for positions, sentence in bad_rows(log_rows, name, columns, place="row", first_row=0):
                yield np.unique(positions), sentence.partition(", ")[2].rstrip(".")

    def _refuse(self, wrong: Mapping[int, str], batch: RowBatch) -> None:
        if wrong and not self._nulls:
            raise DataError(f"{self._sentence(wrong, batch)}; correct it, or score the others with --on-bad-row null.")

    def _sentence(self, wrong: Mapping[int, str], batch: RowBatch) -> str:
        row = min(wrong)
        return f"{self._path}, {batch.place(row)}: {wrong[row]}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
