"""Bodies of requests within their limits, and answers."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request, Response
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from stem_torchrec.server.options import LimitOptions
from stem_torchrec.server.refusals import RefusedError

JSON_TYPE = "application/json"
MIB = 2**20


class Bodies:
    """The bodies of requests that are being received, or wait for their answer.

    Args:
        limits: of a body, and of all of them.
    """

    def __init__(self, limits: LimitOptions) -> None:
        self._limits = limits
        self.size = 0
        """Bytes of all of them."""

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """The body of a request, which counts until the end of the block.

        Raises RefusedError for one that is too large, compressed, or does not come in time, and if there are too many.
        """
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise RefusedError(415, f"Content-Encoding is {encoding}, but the body must come as it is.")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limits.body_mib * MIB:
            raise _too_large(self._limits)
        body = bytearray()
        try:
            await self._receive(request, body)
            yield body
        finally:
            self.size -= len(body)

    async def _receive(self, request: Request, body: bytearray) -> None:
        try:
            async with asyncio.timeout(self._limits.seconds):
                async for part in request.stream():
                    body += part
                    self.size += len(part)
                    self._check(len(body))
        except TimeoutError:
            sentence = f"the body did not come within {self._limits.seconds:g} seconds (--limits.seconds)."
            raise RefusedError(408, sentence) from None
        except ClientDisconnect:
            # Nobody reads this; 499 is what nginx counts such requests as.
            raise RefusedError(499, "the client has gone.") from None

    def _check(self, size: int) -> None:
        """Raises RefusedError if a body of a size is too large, or all of them are."""
        greatest = self._limits.body_mib * MIB
        if size > greatest:
            raise _too_large(self._limits)
        if self.size > self._limits.bodies * greatest:
            sentence = (
                f"the bodies of all requests are {self._limits.bodies} times --limits.body-mib (--limits.bodies)."
            )
            raise RefusedError(503, sentence, headers={"Retry-After": "1"})


def _too_large(limits: LimitOptions) -> RefusedError:
    return RefusedError(413, f"the body is larger than --limits.body-mib allows, {limits.body_mib:g} MiB.")


def media_type(request: Request, *, known: tuple[str, ...]) -> str:
    """The type of a body without its parameters; raises RefusedError for one that is not known."""
    text = request.headers.get("content-type", "")
    kind = text.partition(";")[0].strip().lower()
    if kind not in known:
        raise RefusedError(415, f"Content-Type is {text or 'missing'}, but must be {' or '.join(known)}.")
    return kind


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(to_json(content), status, dict(headers or {}), JSON_TYPE)


def refusal(error: RefusedError) -> Response:
    """The answer to a request that is refused."""
    return json_answer(error.content(), error.status, error.headers)
