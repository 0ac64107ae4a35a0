"""A reader's batches from its worker processes, which live exactly as long as the process that reads from them."""

import atexit
import multiprocessing
import signal
from functools import cache

import torch
from torch.utils.data import DataLoader
from torchrec.datasets.utils import Batch

from stem_torchrec.data.batch import Exposures
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.runtime.signals import ENDING_SIGNALS


def data_loader(reader: ParquetReader, *, pin_memory: bool = False) -> DataLoader:
    """Batches of `reader`, which its worker processes make, in the same order on every call."""
    if reader.num_workers:
        _kill_workers_at_exit()
    return DataLoader(
        reader,
        batch_size=None,
        num_workers=reader.num_workers,
        pin_memory=pin_memory,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_rank,
        # Each iterator draws a seed. From torch's own generator, a resumed run would draw once more than a run that was
        # never interrupted, and dropout would drop other units.
        generator=torch.Generator(),
    )


def _leave_signals_to_the_rank(worker: int) -> None:
    """Makes a worker ignore the signals that ask a command to end.

    A launcher and a terminal send them to these processes as well, but the last checkpoint needs them.
    """
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@cache
def _kill_workers_at_exit() -> None:
    """Kills the workers when this process ends, by an error as well.

    The exit handler of multiprocessing sends SIGTERM to the workers and waits for them to end. They ignore that signal,
    so it would wait forever. This handler is registered later, so it runs earlier.
    """

    def kill() -> None:
        # torch's handler would raise an error for each worker that dies.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for process in multiprocessing.active_children():
            if process.daemon:
                process.kill()

    atexit.register(kill)


def _as_it_is(item: Batch | Exposures) -> Batch | Exposures:
    return item
