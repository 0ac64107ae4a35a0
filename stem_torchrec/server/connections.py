"""Connections whose clients send and read in time, or that are closed."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedConnection(H11Protocol):
    """uvicorn's connection, closed if a head does not come, or an answer is not read, within seconds.

    uvicorn itself waits for ever, so a client could keep a connection by a byte now and then. Beyond its limit of
    connections it answers 503, but a silent client asks nothing: beyond twice the limit connections are closed at once.
    """

    seconds = 10.0
    """Of --limits.seconds."""
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) > 2 * self.limit_concurrency:
            transport.abort()
            return
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # The client or the server wants no other request.
        if self.transport.is_closing():
            self._abort_later()

    def _abort_later(self) -> None:
        # Closing waits until the client has read its answer.
        self.loop.call_later(self.seconds, self.transport.abort)

    def _wait_for_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
