"""Bodies of requests within their limits, and answers."""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import Request, Response
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from stem_torchrec.server.options import LimitOptions
from stem_torchrec.server.refusals import RefusedError

JSON_TYPE = "application/json"
MIB = 2**20


async def read_body(request: Request, limits: LimitOptions) -> bytes:
    """The body of a request.

    Raises RefusedError for one that is too large, compressed, or does not come in time.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise RefusedError(415, f"Content-Encoding is {encoding}, but the body must come as it is.")
    greatest = int(limits.body_mib * MIB)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > greatest:
        raise _too_large(limits)
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > greatest:
                    raise _too_large(limits)
    except TimeoutError:
        raise RefusedError(
            408, f"the body did not come within {limits.seconds:g} seconds (--limits.seconds)."
        ) from None
    except ClientDisconnect:
        # Nobody reads this; 499 is what nginx counts such requests as.
        raise RefusedError(499, "the client has gone.") from None
    return b"".join(parts)


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
