"""Requests scored together: one call of the bundle for all of them, and again without the rows that it refuses."""

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stem_torchrec.data.checks import bad_rows, prepared
from stem_torchrec.preparation.transforms import apply_transforms
from stem_torchrec.runtime.errors import DataError
from stem_torchrec.server.refusals import RefusedError, WrongRow, shortened
from stem_torchrec.server.request_rows import RequestRows
from stem_torchrec.server.served_bundle import ServedBundle
from stem_torchrec.serving.bundle import ROWS_AT_ONCE, Bundle


@dataclass(frozen=True)
class Scores:
    """What a request is answered with."""

    served: ServedBundle
    predictions: NDArray[np.float32]
    """(B, T), as `Bundle.score` has them; NaN in wrong rows."""
    wrong: list[WrongRow]
    """In the order of their rows."""

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.served.bundle.tasks


Request = tuple[ServedBundle, RequestRows]


def score_requests(requests: Sequence[Request]) -> list[Scores | RefusedError]:
    """The answer to each request, in order; those of one bundle whose columns have the same types are scored at once.

    A request that makes the program fail is refused with status 500, and does not harm the others.
    """
    groups: dict[tuple[int, pa.Schema], list[int]] = {}
    for i, (served, rows) in enumerate(requests):
        groups.setdefault((id(served), rows.table.schema), []).append(i)
    answers: dict[int, Scores | RefusedError] = {}
    for group in groups.values():
        answers |= zip(group, _score_group([requests[i] for i in group]), strict=True)
    return [answers[i] for i in range(len(requests))]


def _score_group(requests: Sequence[Request]) -> Sequence[Scores | RefusedError]:
    try:
        return _score_together(requests)
    # Of memory, or of a program that is broken.
    except Exception:
        if len(requests) > 1:
            return [answer for request in requests for answer in _score_group([request])]
        traceback.print_exc(file=sys.stderr)
        return [RefusedError(500, "the rows could not be scored; the log of the server has the reason.")]


def _score_together(requests: Sequence[Request]) -> list[Scores]:
    served, parts = requests[0][0], [rows for _, rows in requests]
    table = pa.concat_tables([rows.table for rows in parts]) if len(parts) > 1 else parts[0].table
    scores, wrong = _score(served.bundle, table)
    answers, start = [], 0
    for rows in parts:
        end = start + len(rows.table)
        left = rows.without({i - start: each for i, each in wrong.items() if start <= i < end})
        predictions = np.full((rows.count, len(served.bundle.tasks)), np.nan, dtype=np.float32)
        right = (
            np.array([i for i in range(start, end) if i not in wrong], dtype=np.int64) if wrong else slice(start, end)
        )
        predictions[left.kept] = scores[right]
        answers.append(Scores(served, predictions, sorted(left.wrong, key=lambda each: each.row)))
        start = end
    return answers


def _score(bundle: Bundle, table: pa.Table) -> tuple[NDArray[np.float32], dict[int, WrongRow]]:
    """Predictions (B, T), and the rows that are wrong, whose predictions mean nothing."""
    try:
        scores, wrong = _matrix(bundle.score(table)), dict[int, WrongRow]()
    except DataError:
        wrong = wrong_rows(bundle, table)
        assert wrong
        right = np.array([i for i in range(len(table)) if i not in wrong], dtype=np.int64)
        scores = np.full((len(table), len(bundle.tasks)), np.nan, dtype=np.float32)
        scores[right] = _matrix(bundle.score(table.take(right)))
    for i in np.flatnonzero(~np.isfinite(scores).all(axis=1)).tolist():
        reason = "the model gives no finite prediction; a number in the row is too large."
        wrong.setdefault(i, WrongRow(i, None, None, reason))
    return scores, wrong


def _matrix(scores: pa.Table) -> NDArray[np.float32]:
    return np.stack([column.to_numpy() for column in scores.columns], axis=1)


def wrong_rows(bundle: Bundle, table: pa.Table) -> dict[int, WrongRow]:
    """The rows of which training would refuse a value, each with its first such value.

    Args:
        bundle: that is to score them.
        table: columns of the types that the bundle reads.
    """
    wrong: dict[int, WrongRow] = {}
    for start in range(0, len(table), ROWS_AT_ONCE):
        for batch in table.slice(start, ROWS_AT_ONCE).combine_chunks().to_batches():
            of_batch = _wrong_in(bundle, batch)
            wrong |= {
                start + i: WrongRow(start + i, each.column, each.value, each.reason) for i, each in of_batch.items()
            }
    return wrong


def _wrong_in(bundle: Bundle, batch: pa.RecordBatch) -> dict[int, WrongRow]:
    columns = bundle.columns
    if bundle.transforms is not None:
        batch = apply_transforms(bundle.transforms, batch)
    rows = pa.Table.from_batches([batch])
    rows = pa.table({name: prepared(rows.column(columns.column_of(name)), name, columns) for name in columns.names})
    wrong: dict[int, WrongRow] = {}
    for name in columns.names:
        for places, _ in bad_rows(rows, name, columns, place="row", first_row=0):
            for i in np.unique(places).tolist():
                if i not in wrong:
                    _, sentence = next(bad_rows(rows.slice(i, 1), name, columns, place="row", first_row=0))
                    column, value = columns.column_of(name), shortened(rows.column(name)[i].as_py())
                    wrong[i] = WrongRow(i, column, value, sentence.removeprefix(f"row 0, column {column!r}: "))
    return wrong
