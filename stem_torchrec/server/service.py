"""What all endpoints share: the bundle, the batches, the limits and whether the server ends."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import torch

from stem_torchrec.server.arrow_rows import too_many_rows
from stem_torchrec.server.batcher import Batcher
from stem_torchrec.server.bodies import MIB, Bodies
from stem_torchrec.server.current_bundle import CurrentBundle
from stem_torchrec.server.metrics import Metrics
from stem_torchrec.server.options import ServeConfig
from stem_torchrec.server.request_rows import RequestRows, within
from stem_torchrec.server.scoring import Scores
from stem_torchrec.server.served_bundle import ServedBundle

ResultT = TypeVar("ResultT")

_SMALL = 2048
"""Bytes of a body that is read within the event loop, where others wait for it: a larger one may take milliseconds."""
ANSWER_BYTES = 16
"""Bytes of a body that take as long to read as a row of an answer to write."""


class Service:
    """The server without HTTP.

    Args:
        config: of the command.
        served: the first bundle.
    """

    def __init__(self, config: ServeConfig, served: ServedBundle) -> None:
        self.config = config
        self.limits = config.limits
        self.bodies = Bodies(config.limits)
        self.metrics = Metrics(lambda: self.batcher.queued_rows, lambda: self.bodies.size)
        path = Path(config.bundle).absolute()
        self.current = CurrentBundle(served, path, Path(config.bundles or path.parent), self.metrics)
        # A thread has its own number of threads of torch, 1 in some builds, unless it is set in it.
        self._scoring = ThreadPoolExecutor(1, "scoring", torch.set_num_threads, (torch.get_num_threads(),))
        self._reading = ThreadPoolExecutor(1, "reading")
        self.batcher = Batcher(config.batch, config.limits, threads=self._scoring, seen=self.metrics.batch_rows.observe)
        self.ending = False
        """Whether the server is asked to end, and /ready says no."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Scores in the background until the end of the block."""
        task = asyncio.create_task(self.batcher.run())
        try:
            yield
        finally:
            task.cancel()
            self._scoring.shutdown(cancel_futures=True)
            self._reading.shutdown(cancel_futures=True)

    async def read(self, size: int, read: Callable[[], ResultT]) -> ResultT:
        """What `read` makes of a body of a size; beside the event loop if it is large."""
        if size <= _SMALL:
            return read()
        return await asyncio.get_running_loop().run_in_executor(self._reading, read)

    def check_count(self, rows: int) -> None:
        """Raises RefusedError for too many rows."""
        if rows > self.limits.rows:
            raise too_many_rows(rows, self.limits.rows)

    def checked(self, rows: RequestRows) -> RequestRows:
        """The rows within the limits, lists that are too long aside. Raises RefusedError if a column is too large."""
        return within(rows, list_items=self.limits.list_items, unfolded=int(self.limits.body_mib * MIB))

    async def score(self, served: ServedBundle, rows: RequestRows) -> Scores:
        """The scores of the rows of a request."""
        scores = await self.batcher.score(served, rows)
        self.metrics.rows.labels("scored").inc(rows.count - len(scores.wrong))
        self.metrics.rows.labels("wrong").inc(len(scores.wrong))
        return scores
