"""A server under requests, right and wrong, while its bundle is swapped: what it answers, and whether it grows."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from served import ARROW, JSON, TOKEN, Server, stream_of

ROUNDING = 1e-6
"""A row is scored beside others in a batch of another size, whose products are rounded in another order."""
SWAPS = (("a", 200), ("damaged", 422), ("b", 200))
"""Bundles one after another, and how a swap to each is answered."""
_LOADING = ("/admin/swap", "/v2/repository/models/{name}/load")
_LET_GO = 1.5
"""Seconds after which the bundle before a swap is let go; the server waits for one."""


@dataclass(frozen=True)
class Size:
    """What could grow in a server."""

    mib: float
    """Of memory that no file backs."""
    files: int
    threads: int
    bundles: float
    queued: float

    @classmethod
    def of(cls, server: Server) -> "Size":
        process = Path(f"/proc/{server.process.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return cls(
            int(status["RssAnon"].split()[0]) / 1024,
            len(list((process / "fd").iterdir())),
            len(list((process / "task").iterdir())),
            server.metric("stem_bundles_loaded"),
            server.metric("stem_queue_rows"),
        )


@dataclass
class Soak:
    """What a soak has seen so far."""

    answers: Counter[int] = field(default_factory=Counter)
    """By status."""
    drawn: Counter[str] = field(default_factory=Counter)
    """Requests that were drawn from the OpenAPI document, by path."""
    swaps: int = 0
    wrong: list[str] = field(default_factory=list)
    """Sentences about what should not have been."""


def draw(server: Server, number: int, examples: int, *, loading: bool, asked: Counter[str]) -> None:
    """Sends requests that are drawn from the server's own document, right and wrong, and checks the answers by it.

    Args:
        server: that answers.
        number: of the draw; another one draws others.
        examples: of each kind for each operation.
        loading: whether they may load bundles.
        asked: counts the requests by path.

    Raises what schemathesis raises for an answer that the document does not have, or a failure of the server.
    """
    headers = {"Authorization": f"Bearer {TOKEN}"}
    schema = schemathesis.openapi.from_url(f"http://{server.host}:{server.port}/openapi.json", headers=headers)
    # Texts that are no times and tensors that are no features are right by the document, and refused.
    excluded = [positive_data_acceptance]
    for each in schema.get_all_operations():
        operation = each.ok()
        if operation.path in _LOADING and not loading:
            continue
        # A request without a body has nothing that could be wrong.
        for mode in GenerationMode if len(operation.body) else [GenerationMode.POSITIVE]:

            @given(case=operation.as_strategy(generation_mode=mode))
            @seed(number)
            @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            def check(case: schemathesis.Case) -> None:
                asked[case.path] += 1
                response = case.call(headers=headers, timeout=30)
                # Of several rows, of which some are wrong, the others are scored.
                partly = response.status_code == 200 and b'"errors":[{' in response.content
                case.validate_response(
                    response,
                    headers=headers,
                    excluded_checks=[*excluded, negative_data_rejection] if partly else excluded,
                    transport_kwargs={"timeout": 30, "headers": headers},
                )

            check()


def soak(server: Server, seconds: float, swap_every: float, *, rows: pa.Table, expected: Mapping[str, Any]) -> Soak:
    """Lets four clients ask for some seconds, a fifth send what is drawn from the OpenAPI document, and swaps bundles.

    Args:
        server: that answers.
        seconds: until the clients end, at least: each of SWAPS is asked for once.
        swap_every: seconds after a swap until the next one.
        rows: that the clients ask for.
        expected: probabilities (B, T) of the rows by version of a bundle, tasks in the order of the answer.
    """
    seen, stop, end = Soak(), threading.Event(), time.monotonic() + seconds
    bodies = bodies_of(rows)
    with ThreadPoolExecutor(5) as clients, ending(stop):
        under_way = [clients.submit(_ask, server, bodies, i, expected, stop, seen) for i in range(4)]
        under_way.append(clients.submit(_draw, server, stop, seen))
        while seen.swaps < len(SWAPS) or time.monotonic() + swap_every < end:
            bundle, status = SWAPS[seen.swaps % len(SWAPS)]
            answer = server.ask("/admin/swap", {"bundle": bundle})
            if answer.status != status:
                seen.wrong.append(f"the swap to {bundle}: {answer.status} {answer.body[:200]!r}")
            seen.swaps += 1
            stop.wait(swap_every)
    for each in under_way:
        each.result()
    time.sleep(_LET_GO)
    return seen


def bodies_of(rows: pa.Table) -> list[tuple[bytes, str, int]]:
    """Bodies that clients send in turn, their type, and how they are answered."""
    right = [(json.dumps({"rows": rows.to_pylist()}).encode(), JSON, 200), (stream_of(rows), ARROW, 200)]
    wrong = [
        # Large, so that memory tells whether bodies are kept.
        (b'{"rows": [' + b" " * 200_000, JSON, 400),
        (b"{}", "text/plain", 415),
        (b"x" * 2**21, JSON, 413),
        (stream_of(rows)[:99], ARROW, 400),
        (json.dumps({"rows": [{"user": "x"}, 3]}).encode(), JSON, 422),
    ]
    return [*right, *wrong]


def _ask(
    server: Server,
    bodies: Sequence[tuple[bytes, str, int]],
    first: int,
    expected: Mapping[str, Any],
    stop: threading.Event,
    seen: Soak,
) -> None:
    count = first
    while not stop.is_set():
        body, kind, status = bodies[count % len(bodies)]
        count += 1
        try:
            answer = server.ask("/score", body, kind)
        except OSError as error:
            # The server may answer 413 and close before it has read the body, which is a reset for the client.
            if status != 413:
                seen.wrong.append(repr(error))
            continue
        seen.answers[answer.status] += 1
        if answer.status != status:
            seen.wrong.append(f"{answer.status} {answer.body[:200]!r}")
        elif kind == JSON and status == 200:
            of_version = expected[answer.json["version"]]
            scores = np.array([list(row.values()) for row in answer.json["predictions"]])
            if np.abs(scores - of_version).max() > ROUNDING:
                seen.wrong.append("scores of another version")


def _draw(server: Server, stop: threading.Event, seen: Soak) -> None:
    number = 0
    while not stop.is_set():
        try:
            draw(server, number, 2, loading=False, asked=seen.drawn)
        # Of schemathesis and of the connection; several in a group.
        except Exception as error:
            seen.wrong.append(f"draw {number}: {error!r}"[:2000])
        number += 1


@contextmanager
def ending(stop: threading.Event) -> Iterator[None]:
    """Sets the event at the end of the block, also if that fails."""
    try:
        yield
    finally:
        stop.set()
