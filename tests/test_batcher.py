"""Requests that wait are scored together within their limits, each gets its own scores, and none waits too long."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from stem_torchrec.server.batcher import Batcher
from stem_torchrec.server.options import BatchOptions, LimitOptions
from stem_torchrec.server.refusals import RefusedError
from stem_torchrec.server.request_rows import RequestRows
from stem_torchrec.server.scoring import Scores
from stem_torchrec.server.served_bundle import ServedBundle

LONG_MS = 60_000
"""More than a test may take: nothing that waits for so long has ended by its deadline."""


class Halves:
    """A bundle whose task `half` is half of the number in the row, and whose program fails at a number below 0."""

    tasks = ("half",)

    def score(self, table: pa.Table) -> pa.Table:
        if (table["number"].to_numpy() < 0).any():
            raise RuntimeError("a number below 0")
        return pa.table({"half": pc.multiply(table["number"], 0.5)})


SERVED = ServedBundle(Halves(), "1")  # type: ignore[arg-type]


def rows_of(*numbers: float) -> RequestRows:
    return RequestRows(len(numbers), pa.table({"number": numbers}), np.arange(len(numbers)), [])


class Waiting:
    """A batcher that is at work, whose batches one after another wait until the test lets them be scored."""

    def __init__(self, batcher: Batcher, threads: ThreadPoolExecutor, seen: list[int]) -> None:
        self.batcher = batcher
        self.seen = seen
        """The rows of each batch."""
        self._threads = threads
        self._free = threading.Event()
        self._requests: list[asyncio.Task[Scores]] = []

    def hold(self) -> None:
        """Lets no batch be scored until `free`."""
        self._threads.submit(self._free.wait)

    async def busy(self) -> None:
        """Begins a batch of one row, which is not scored until `free`."""
        self.hold()
        await self.ask(0.0)
        while not self.seen:
            await asyncio.sleep(0.001)

    async def ask(self, *numbers: float) -> asyncio.Task[Scores]:
        """A request that waits."""
        request = asyncio.create_task(self.batcher.score(SERVED, rows_of(*numbers)))
        self._requests.append(request)
        await asyncio.sleep(0)
        return request

    async def free(self) -> list[list[float]]:
        """Lets all batches be scored; the scores of each request, the first one of `busy` included."""
        self._free.set()
        scores = await asyncio.wait_for(asyncio.gather(*self._requests), 20)
        return [each.predictions[:, 0].tolist() for each in scores]

    def end(self) -> None:
        self._free.set()


@asynccontextmanager
async def at_work(batch: BatchOptions, limits: LimitOptions) -> AsyncIterator[Waiting]:
    """A batcher until the end of the block."""
    seen: list[int] = []
    with ThreadPoolExecutor(1) as threads:
        batcher = Batcher(batch, limits, threads=threads, seen=seen.append)
        waiting = Waiting(batcher, threads, seen)
        running = asyncio.create_task(batcher.run())
        try:
            yield waiting
        finally:
            waiting.end()
            running.cancel()
            await asyncio.wait([running])


def run(test: Coroutine[Any, Any, None]) -> None:
    """Runs a test in an event loop of its own; fails if it takes longer than 30 seconds."""
    asyncio.run(asyncio.wait_for(test, 30))


def test_requests_that_come_while_others_are_scored_go_into_one_batch() -> None:
    async def test() -> None:
        async with at_work(BatchOptions(), LimitOptions()) as waiting:
            await waiting.busy()
            for numbers in ((2.0, 4.0), (6.0,), ()):
                await waiting.ask(*numbers)
            assert waiting.batcher.queued_rows == 3
            assert await waiting.free() == [[0.0], [1.0, 2.0], [3.0], []]
            assert (waiting.seen, waiting.batcher.queued_rows) == ([1, 3], 0)

    run(test())


def test_a_batch_is_full_at_its_rows_and_a_larger_request_is_one_of_its_own() -> None:
    async def test() -> None:
        async with at_work(BatchOptions(rows=4), LimitOptions()) as waiting:
            await waiting.busy()
            for numbers in ((1.0,) * 3, (2.0,) * 2, (3.0,) * 2, (4.0,) * 9, (5.0,)):
                await waiting.ask(*numbers)
            await waiting.free()
            assert waiting.seen == [1, 3, 4, 9, 1]

    run(test())


def test_the_first_request_waits_for_others_and_no_longer_than_wait_ms() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with at_work(BatchOptions(wait_ms=150), LimitOptions()) as waiting:
            begin = loop.time()
            first, second = await waiting.ask(2.0), await waiting.ask(4.0)
            await asyncio.sleep(0.02)
            third = await waiting.ask(6.0)
            await asyncio.wait([first, second, third])
            assert loop.time() - begin >= 0.15
            assert waiting.seen == [3]
        async with at_work(BatchOptions(rows=2, wait_ms=LONG_MS), LimitOptions(seconds=20)) as waiting:
            await waiting.ask(2.0)
            await asyncio.sleep(0.02)
            assert waiting.seen == []
            # The batch is full, and waits for nothing more.
            await waiting.ask(4.0)
            assert await waiting.free() == [[1.0], [2.0]]
            assert waiting.seen == [2]

    run(test())


def test_more_rows_than_may_wait_are_refused_and_later_taken() -> None:
    async def test() -> None:
        async with at_work(BatchOptions(), LimitOptions(queue_rows=3)) as waiting:
            await waiting.busy()
            # A request alone may have more rows than may wait, or it would never be scored.
            await waiting.ask(*[2.0] * 5)
            with pytest.raises(RefusedError) as refused:
                await waiting.batcher.score(SERVED, rows_of(4.0))
            assert (refused.value.status, dict(refused.value.headers)) == (503, {"Retry-After": "1"})
            assert refused.value.sentence == "5 rows wait already, and --limits.queue-rows is 3."
            await waiting.free()
            for _ in range(3):
                await waiting.ask(6.0)
            assert (await waiting.free())[2:] == [[3.0]] * 3

    run(test())


def test_who_has_waited_too_long_is_refused_and_not_scored() -> None:
    async def test() -> None:
        async with at_work(BatchOptions(), LimitOptions(seconds=0.1)) as waiting:
            waiting.hold()
            for numbers in ((2.0,), (4.0,) * 7):
                with pytest.raises(RefusedError) as refused:
                    await waiting.batcher.score(SERVED, rows_of(*numbers))
                assert (refused.value.status, dict(refused.value.headers)) == (503, {"Retry-After": "1"})
                sentence = "the rows were not scored within 0.1 seconds (--limits.seconds)."
                assert refused.value.sentence == sentence
            assert await waiting.free() == []
            while waiting.batcher.queued_rows:
                await asyncio.sleep(0.001)
            # The batch of one row had begun; the other seven had given up before theirs.
            assert waiting.seen == [1]

    run(test())


def test_a_request_that_makes_the_bundle_fail_does_not_harm_the_others_of_its_batch() -> None:
    async def test() -> None:
        async with at_work(BatchOptions(), LimitOptions()) as waiting:
            await waiting.busy()
            await waiting.ask(2.0)
            wrong = asyncio.create_task(waiting.batcher.score(SERVED, rows_of(-1.0)))
            await asyncio.sleep(0)
            await waiting.ask(4.0)
            assert await waiting.free() == [[0.0], [1.0], [2.0]]
            with pytest.raises(RefusedError) as refused:
                await wrong
            assert (refused.value.status, waiting.seen) == (500, [1, 3])

    run(test())
