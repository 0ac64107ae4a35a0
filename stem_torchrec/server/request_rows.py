"""The rows of a request: those that can be scored, as a table, and those that cannot."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stem_torchrec.data.column_types import is_list, is_text
from stem_torchrec.data.type_checks import check_types
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.server.refusals import RefusedError, WrongRow
from stem_torchrec.serving.bundle import Bundle
from stem_torchrec.serving.inputs import check_names, check_raw


@dataclass(frozen=True)
class RequestRows:
    """The rows of one request."""

    count: int
    """Of all rows."""
    table: pa.Table
    """The rows that seem right."""
    kept: NDArray[np.int64]
    """The place in the request of each row of the table."""
    wrong: list[WrongRow]

    def without(self, wrong: Mapping[int, WrongRow]) -> "RequestRows":
        """The same without some rows of the table, which are wrong."""
        if not wrong:
            return self
        right = np.array([i for i in range(len(self.table)) if i not in wrong], dtype=np.int64)
        moved = [replace(each, row=int(self.kept[i])) for i, each in wrong.items()]
        return RequestRows(self.count, self.table.take(right), self.kept[right], [*self.wrong, *moved])


def rows_of_table(bundle: Bundle, table: pa.Table) -> RequestRows:
    """The rows of a table of Arrow, whose columns have the types that the bundle reads.

    Raises RefusedError for a column that is missing or of another type.
    """
    try:
        check_names(table.schema, bundle.input_columns)
        table = table.select(list(bundle.input_columns))
        for batch in table.slice(0, 0).to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]:
            check_raw(batch, bundle.raw_types)
        if bundle.transforms is None:
            check_types(table.schema, "the request", bundle.columns)
    except UserError as error:
        raise RefusedError(422, str(error)) from error
    return RequestRows(table.num_rows, table, np.arange(table.num_rows), [])


def within(rows: RequestRows, *, list_items: int, unfolded: int) -> RequestRows:
    """The rows whose lists have up to `list_items` values.

    Raises RefusedError if the columns would have more than `unfolded` bytes of text and values of lists, as a few bytes
    may stand for many; of the types that may do so, only dictionaries of numbers and texts are taken.
    """
    total, wrong = 0, dict[int, WrongRow]()
    for name in rows.table.column_names:
        column = rows.table.column(name)
        _check_plain(name, column.type)
        lengths = [_lengths(chunk) for chunk in column.chunks]
        # Columns may share their bytes.
        total += sum(int(each.sum(dtype=np.int64)) for each in lengths)
        if total > unfolded:
            raise RefusedError(
                413, f"the columns up to {name!r} have {total} bytes or values, but only {unfolded} are allowed."
            )
        if is_list(column.type) and lengths:
            counts = np.concatenate(lengths)
            for i in np.flatnonzero(counts > list_items).tolist():
                reason = f"{name} has {counts[i]} values, but --limits.list-items allows {list_items}."
                wrong.setdefault(i, WrongRow(i, name, None, reason))
    return rows.without(wrong)


def _check_plain(name: str, kind: pa.DataType) -> None:
    plain = not is_view(kind)
    if pa.types.is_dictionary(kind):
        plain = pa.types.is_string(kind.value_type) or pa.types.is_primitive(kind.value_type)
    if is_list(kind):
        item = kind.value_type
        plain &= not (is_view(item) or pa.types.is_nested(item) or pa.types.is_dictionary(item))
    if not plain:
        raise RefusedError(422, f"column {name!r} is {kind}, which is not taken; cast it to a plain type.")


def is_view(kind: pa.DataType) -> bool:
    """Whether values of a type may share their bytes, so that there are more of them than bytes."""
    tests = (pa.types.is_string_view, pa.types.is_binary_view, pa.types.is_list_view, pa.types.is_large_list_view)
    return any(test(kind) for test in tests) or pa.types.is_run_end_encoded(kind)


def _lengths(chunk: pa.Array) -> NDArray[np.int64]:
    """The bytes of each text or the number of values in each list; 0 for other types."""
    if is_list(chunk.type):
        lengths = pc.list_value_length(chunk)
    elif pa.types.is_dictionary(chunk.type) and is_text(chunk.type.value_type):
        lengths = pc.take(pc.binary_length(chunk.dictionary), chunk.indices)
    elif is_text(chunk.type):
        lengths = pc.binary_length(chunk)
    else:
        return np.zeros(0, dtype=np.int64)
    return pc.fill_null(lengths.cast(pa.int64()), 0).to_numpy()
