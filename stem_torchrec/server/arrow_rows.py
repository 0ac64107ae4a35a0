"""Bodies of Arrow: a stream of record batches in, and one out.

Arrow checks the frame of a stream only, so the values of a stranger's are checked here; compressed buffers are refused,
as a few bytes of them may stand for gigabytes.
"""

import struct

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stem_torchrec.runtime.errors import reason_of
from stem_torchrec.server.refusals import RefusedError

ARROW_TYPE = "application/vnd.apache.arrow.stream"
ERROR_COLUMN = "error"
"""The column of an answer that says what is wrong with a row; null if nothing is."""

_RECORD_BATCH, _DICTIONARY_BATCH = 3, 2
"""Headers of a message in Arrow's Message.fbs."""


def read_stream(body: bytes | bytearray, *, max_rows: int) -> pa.Table:
    """The rows of a body.

    Raises RefusedError for one that is no stream of Arrow, ends early, is compressed or has too many rows.
    """
    try:
        buffer = pa.py_buffer(body)
        _check_messages(pa.ipc.MessageReader.open_stream(buffer), max_rows)
        with pa.ipc.open_stream(buffer) as reader:
            table = reader.read_all()
        table.validate(full=True)
    # Arrow raises OSError for a message that ends early, and the struct module for one with places outside of it.
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise RefusedError(400, f"the body is no stream of Arrow ({reason_of(error)[:200]}).") from error
    if table.num_rows > max_rows:
        raise too_many_rows(table.num_rows, max_rows)
    return table


def too_many_rows(count: int, max_rows: int) -> RefusedError:
    """The answer to a request with too many rows."""
    return RefusedError(413, f"the request has {count} rows, but --limits.rows allows {max_rows}.")


def write_stream(scores: NDArray[np.float32], tasks: tuple[str, ...], errors: dict[int, str]) -> bytes:
    """Probabilities (B, T) as a stream, null in the rows that have an error.

    Example::

        # buy: float   click: float   error: string
        # 0.31         0.08           null
        # null         null           "user is 'anna', but must be a whole number of 64 bits."
    """
    wrong = np.zeros(len(scores), dtype=bool)
    wrong[list(errors)] = True
    mask = wrong if errors else None
    columns = {task: pa.array(scores[:, i], mask=mask) for i, task in enumerate(tasks)}
    name = ERROR_COLUMN
    while name in columns:
        name += "_"
    columns[name] = pa.array([errors.get(i) for i in range(len(scores))], pa.string())
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _check_messages(reader: pa.ipc.MessageReader, max_rows: int) -> None:
    rows = 0
    for message in reader:
        table = _Table.root(message.metadata.to_pybytes())
        header, batch = table.number(1, "<B"), table.table(2)
        if header == _DICTIONARY_BATCH and batch is not None:
            batch = batch.table(1)
        elif header == _RECORD_BATCH and batch is not None:
            rows += batch.number(0, "<q")
            if rows > max_rows:
                raise too_many_rows(rows, max_rows)
        else:
            continue
        if batch is not None and batch.table(3) is not None:
            raise RefusedError(415, "the buffers of the stream are compressed; write it without compression.")


class _Table:
    """A table of Flatbuffers, whose fields are numbers and other tables.

    Args:
        data: the whole message.
        place: where the table begins in it.
    """

    def __init__(self, data: bytes, place: int) -> None:
        self._data = data
        self._place = place

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        return cls(data, struct.unpack_from("<I", data)[0])

    def _field(self, index: int) -> int | None:
        """Where a field is; None if it has its default."""
        vtable = self._place - struct.unpack_from("<i", self._data, self._place)[0]
        if 4 + 2 * index >= struct.unpack_from("<H", self._data, vtable)[0]:
            return None
        offset: int = struct.unpack_from("<H", self._data, vtable + 4 + 2 * index)[0]
        return self._place + offset if offset else None

    def number(self, index: int, form: str) -> int:
        place = self._field(index)
        return 0 if place is None else int(struct.unpack_from(form, self._data, place)[0])

    def table(self, index: int) -> "_Table | None":
        place = self._field(index)
        return None if place is None else _Table(self._data, place + struct.unpack_from("<I", self._data, place)[0])
