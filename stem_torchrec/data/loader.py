"""A reader's batches from its worker processes, which end with the process that asks for them and not before."""

import atexit
import multiprocessing
import signal
from functools import cache

import torch
from torch.utils.data import DataLoader
from torchrec.datasets.utils import Batch

from stem_torchrec.data.batch import Exposures
from stem_torchrec.data.reader import ParquetReader


def data_loader(reader: ParquetReader, *, pin_memory: bool = False) -> DataLoader:
    """Batches of `reader`, made in its worker processes, in the same order on every call."""
    if reader.num_workers:
        _kill_workers_at_exit()
    return DataLoader(
        reader,
        batch_size=None,
        num_workers=reader.num_workers,
        pin_memory=pin_memory,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_rank,
        # Each iterator draws a seed; from torch's own generator, a run that goes on would draw once more than one that
        # was never interrupted, and drop other units out.
        generator=torch.Generator(),
    )


def _leave_signals_to_the_rank(worker: int) -> None:
    """Makes a worker ignore SIGTERM and SIGINT.

    A launcher sends SIGTERM, and a terminal Ctrl-C, to these processes as well, which the last checkpoint needs.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@cache
def _kill_workers_at_exit() -> None:
    """Has the workers killed when this process ends, also by an error.

    multiprocessing has an exit handler of its own: it sends SIGTERM to the workers and waits for them to end. They
    ignore that signal, so it would wait forever. This handler is registered later, so it runs earlier.
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
