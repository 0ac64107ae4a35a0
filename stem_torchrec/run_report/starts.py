"""When a run was started and resumed: each start of a run writes a file of TensorBoard of its own."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.tensorflow_stub.errors import DataLossError

from stem_torchrec.runtime.store_path import AnyPath


@dataclass(frozen=True)
class Start:
    """One start of a run, by rank 0's clock."""

    begin: datetime
    end: datetime
    """Of the last line that it logged."""
    after: int
    """The step that it resumed after; 0 for a start from the beginning."""
    last_step: int
    """The last step that it logged."""


def starts_of(folder: AnyPath) -> list[Start]:
    """The starts of a run, the first one first; [] where TensorBoard's files are missing.

    A file that a kill has cut off counts up to there, and one without an event not at all.
    """
    board = folder / "tensorboard"
    files = [file for file in board.iterdir() if ".tfevents." in file.name] if board.is_dir() else []
    starts = [start for file in files if (start := _start_of(file)) is not None]
    return sorted(starts, key=lambda start: start.begin)


def _start_of(file: AnyPath) -> Start | None:
    times, steps, after = [], [0], 0
    with _local(file) as path:
        for event in _events(path):
            times.append(event.wall_time)
            steps.append(event.step)
            if event.session_log.status == SessionLog.START:
                after = event.step - 1
    if not times:
        return None
    begin, end = (datetime.fromtimestamp(time, UTC) for time in (min(times), max(times)))
    return Start(begin, end, after, max(after, steps[-1]))


def _events(path: Path) -> Iterator[Event]:
    try:
        for record in RawEventFileLoader(str(path)).Load():
            yield Event.FromString(record)
    except (DataLossError, DecodeError):
        return


@contextmanager
def _local(file: AnyPath) -> Iterator[Path]:
    """The file itself, or a copy of one in a store."""
    if isinstance(file, Path):
        yield file
        return
    with tempfile.NamedTemporaryFile() as copy:
        with file.open("rb") as source:
            shutil.copyfileobj(source, copy)
        copy.flush()
        yield Path(copy.name)
