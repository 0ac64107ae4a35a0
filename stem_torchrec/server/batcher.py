"""Dynamic batches: requests that wait are scored together, by one thread beside the event loop."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from stem_torchrec.server.options import BatchOptions, LimitOptions
from stem_torchrec.server.refusals import RefusedError
from stem_torchrec.server.request_rows import RequestRows
from stem_torchrec.server.scoring import Scores, score_requests
from stem_torchrec.server.served_bundle import ServedBundle

_RETRY = {"Retry-After": "1"}


@dataclass
class _Waiting:
    served: ServedBundle
    rows: RequestRows
    answer: "asyncio.Future[Scores | RefusedError]"


class Batcher:
    """Scores requests in batches; torch has its threads for one batch, so there is one batch at a time.

    While a batch is scored others come, and go into the next one: so batches grow with the load, and a request alone
    does not wait.

    Args:
        batch: how large a batch is, and what it waits for.
        limits: how many rows may wait, and how long.
        threads: the thread that scores.
        seen: called with the rows of each batch.
    """

    def __init__(
        self, batch: BatchOptions, limits: LimitOptions, *, threads: ThreadPoolExecutor, seen: Callable[[int], None]
    ) -> None:
        self._options = batch
        self._limits = limits
        self._threads = threads
        self._seen = seen
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self.queued_rows = 0
        """Rows that wait; those that are being scored do not count."""

    async def score(self, served: ServedBundle, rows: RequestRows) -> Scores:
        """The scores of a request.

        Raises RefusedError if too many rows wait, or the request has waited for too long.
        """
        count = len(rows.table)
        if self._queue and self.queued_rows + count > self._limits.queue_rows:
            sentence = f"{self.queued_rows} rows wait already, and --limits.queue-rows is {self._limits.queue_rows}."
            raise RefusedError(503, sentence, headers=_RETRY)
        waiting = _Waiting(served, rows, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self.queued_rows += count
        self._arrived.set()
        try:
            async with asyncio.timeout(self._limits.seconds):
                answer = await waiting.answer
        except TimeoutError:
            sentence = f"the rows were not scored within {self._limits.seconds:g} seconds (--limits.seconds)."
            raise RefusedError(503, sentence, headers=_RETRY) from None
        if isinstance(answer, RefusedError):
            raise answer
        return answer

    async def run(self) -> None:
        """Scores until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = await self._next_batch()
            # Who has given up is not scored.
            batch = [waiting for waiting in batch if not waiting.answer.done()]
            if not batch:
                continue
            self._seen(sum(len(waiting.rows.table) for waiting in batch))
            requests = [(waiting.served, waiting.rows) for waiting in batch]
            answers = await loop.run_in_executor(self._threads, score_requests, requests)
            _answer(batch, answers)
            # The loop goes on with what it has, and a bundle that was swapped would stay in memory.
            del batch, requests, answers

    async def _next_batch(self) -> list[_Waiting]:
        batch = [self._take()]
        rows = len(batch[0].rows.table)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._options.wait_ms / 1000 or None):
                while rows < self._options.rows:
                    if not self._queue:
                        if not self._options.wait_ms:
                            break
                        await self._arrived.wait()
                    if rows + len(self._queue[0].rows.table) > self._options.rows:
                        break
                    batch.append(self._take())
                    rows += len(batch[-1].rows.table)
        return batch

    def _take(self) -> _Waiting:
        waiting = self._queue.popleft()
        self.queued_rows -= len(waiting.rows.table)
        if not self._queue:
            self._arrived.clear()
        return waiting


def _answer(batch: Sequence[_Waiting], answers: Sequence[Scores | RefusedError]) -> None:
    for waiting, answer in zip(batch, answers, strict=True):
        if not waiting.answer.done():
            waiting.answer.set_result(answer)
