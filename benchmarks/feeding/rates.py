"""Rows per second of a reader that nobody keeps waiting."""

import time
from collections.abc import Mapping
from typing import Any

from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.loader import data_loader
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import load_schema


def open_reader(path: str, *, batch_size: int, workers: int) -> ParquetReader:
    """A reader of a log's training split as a run has it, on one rank."""
    schema = load_schema(path)
    columns = Columns.select(schema)
    row_groups = find_row_groups(path, "train", schema, columns)
    return ParquetReader(row_groups, columns, batch_size=batch_size, num_workers=workers)


def measure_rate(path: str, *, batch_size: int, workers: int) -> Mapping[str, Any]:
    """Reads a log once; returns the rows, the seconds, and the CPU seconds of this process, without its workers."""
    reader = open_reader(path, batch_size=batch_size, workers=workers)
    start, cpu = time.perf_counter(), time.process_time()
    # With the start of the workers and the first block, which the rows after it share.
    rows = sum(len(batch.labels) for batch in data_loader(reader))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return {"rows": rows, "seconds": seconds, "cpu_seconds": cpu_seconds, "rows_per_second": rows / seconds}
