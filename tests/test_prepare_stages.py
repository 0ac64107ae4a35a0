"""What stem-prepare shows while it works, and that DuckDB works beyond its memory."""

import os
import re
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.preparation.engines.duckdb_engine import DuckDBEngine
from stem_torchrec.preparation.stages import Stages


@contextmanager
def terminal() -> Iterator[int]:
    """A terminal in the place of standard error: what reads it."""
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (24, 120))
    os.set_blocking(reader, False)
    with os.fdopen(writer, "w") as stream, redirect_stderr(stream):
        yield reader
    os.close(reader)


def test_a_terminal_shows_rows_per_second_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    percent = 0.0
    stages = Stages(lambda: percent)
    with terminal() as reader:
        with stages.stage("rows") as done:
            percent = 40.0
            time.sleep(0.5)
            done(1_000_000)
        first = os.read(reader, 10_000).decode()
        assert re.search(r"rows: +40%.*\| 40/100 \[00:0\d<00:0\d, .*%/s\]", first)
        with stages.stage("write") as done:
            percent = 60.0
            time.sleep(0.5)
            # The next query begins anew.
            percent = 25.0
            time.sleep(0.5)
            done(1_000_000)
        second = os.read(reader, 10_000).decode()
        assert re.search(r"write: +60%.*\| 600k/1\.00M \[00:0\d<00:0\d, \d.*M? rows/s\]", second)
        assert re.search(r"write: +25%.*\| 250k/1\.00M \[00:0\d<00:0\d, \d.*M? rows/s\]", second)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(re.fullmatch(r"(rows|write) +1,000,000 rows +[\d.]+ s +[\d,]+k rows/s", line) for line in lines)


def test_a_query_beyond_the_memory_is_spilled_into_the_folder_of_the_engine(tmp_path: Path) -> None:
    rows, sizes, ended = 1_500_000, [0], threading.Event()
    texts = [f"{i * 7919 % rows:032}" for i in range(rows)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    engine = DuckDBEngine(tmp_path, memory="40MB", threads=1)

    def watch() -> None:
        while not ended.wait(0.01):
            sizes.append(sum(path.stat().st_size for path in (tmp_path / "spill").glob("*") if path.exists()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        table = engine.parquet(tmp_path / "rows.parquet")
        engine.write_file(table.order_by("text"), tmp_path / "sorted.parquet", row_group_size=65_536)
    finally:
        ended.set()
        watcher.join()
        engine.close()
    # A row has 32 bytes.
    assert max(sizes) > 10_000_000
    assert pq.read_table(tmp_path / "sorted.parquet")["text"].to_pylist() == sorted(texts)
