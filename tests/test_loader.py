"""Workers that get little shared memory or few files."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from stem_torchrec.data.loader import data_loader
from stem_torchrec.runtime.errors import DataError

from distributed import run_ranks
from test_reader import reader_of, rows_of, write_log


def read_with_files(folder: Path, free: int) -> Any:
    """The rows that two workers read where this process may open `free` more files; the error if they cannot start."""
    files = len(os.listdir("/proc/self/fd")) + free
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    try:
        loader = data_loader(reader_of(folder, batch_size=9, shuffle_rows=0, num_workers=2))
        return [row for batch in loader for row in rows_of(batch)]
    except DataError as error:
        return str(error)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_with_few_files_send_their_batches_through_pipes(tmp_path: Path) -> None:
    folder = write_log(tmp_path, 100, [[10] * 5, [50]])
    assert run_ranks(1, read_with_files, folder, 60) == run_ranks(1, read_with_files, folder, 2000)
    (error,) = run_ranks(1, read_with_files, folder, 8)
    assert error.startswith("--data.num-workers is 2, but the workers cannot start ([Errno 24] Too many open files);")
