"""stem-serve from its options to its end: the port, the token, the signals."""

import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from stem_torchrec.config.path_fields import with_paths
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.exit_status import killed_by
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.signals import ENDING_SIGNALS
from stem_torchrec.runtime.threads import set_threads
from stem_torchrec.server.application import build_application
from stem_torchrec.server.connections import TimedConnection
from stem_torchrec.server.listening import bound_socket, start_listening
from stem_torchrec.server.options import TOKEN_VARIABLE, ServeConfig
from stem_torchrec.server.served_bundle import open_bundle
from stem_torchrec.server.service import Service
from stem_torchrec.serving.bundle import Bundle

_LEAST_TOKEN = 16
"""Characters of a token: fewer can be guessed."""


class _Server(uvicorn.Server):
    """uvicorn without its signals, which run_server handles as the other commands do."""

    def capture_signals(self) -> nullcontext[None]:  # type: ignore[override]
        return nullcontext()


def run_server(config: ServeConfig) -> None:
    """Serves a bundle until a signal ends it.

    Raises UserError for a bundle, token or port that cannot be used, and SystemExit with 128 + the number of the
    signal when the requests under way have been answered, or took too long.
    """
    if not config.bundle:
        raise UserError("--bundle is missing; give the folder that stem-export wrote: --bundle BUNDLE.")
    config = with_paths(config)
    token = read_token(config.token_file)
    # A wrong address is told before the bundle is loaded, which may take seconds.
    with bound_socket(config.host, config.http) as listener:
        number, cut_off = _serve(config, listener, token)
    left = f"{cut_off} request{'s' * (cut_off > 1)} did not end in time" if cut_off else "all requests are answered"
    log_rank0(f"{signal.Signals(number).name}: {left}")
    sys.exit(killed_by(number))


def _serve(config: ServeConfig, listener: socket.socket, token: str | None) -> tuple[int, int]:
    """Answers until a signal comes; returns its number and how many requests were not answered."""
    address = listener.getsockname()
    set_threads(len(os.sched_getaffinity(0)), local_world_size=1)
    service = Service(config, open_bundle(Path(config.bundle)))
    application = build_application(service, token=token)
    start_listening(listener, config.host, config.http)
    TimedConnection.seconds = config.limits.seconds
    server = _Server(
        uvicorn.Config(
            application,
            http=TimedConnection,
            ws="none",
            lifespan="on",
            log_level="error",
            access_log=False,
            server_header=False,
            limit_concurrency=config.limits.connections,
            # What is under way may read its body, be scored and be sent.
            timeout_graceful_shutdown=int(3 * config.limits.seconds) + 1,
        )
    )
    # Whoever reads the address may send a signal at once.
    with _ending_on_signals(server, service, config.drain_seconds) as numbers:
        _tell(address, service.current.served.bundle, token)
        server.run(sockets=[listener])
    return numbers[0], application.cut_off


def _tell(address: Any, bundle: Bundle, token: str | None) -> None:
    """Prints where the server listens, and warns if a network may ask it without a token."""
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    log_rank0(f"http://{shown}:{address[1]} scores {', '.join(bundle.tasks)} by {bundle.folder}")
    if token is None and not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
        print(
            f"warning: whoever reaches {address[0]} may ask and swap bundles; set a token by --token-file or "
            f"{TOKEN_VARIABLE}.",
            file=sys.stderr,
        )


def read_token(file: str | None) -> str | None:
    """The token of a file or the environment, None without either; raises UserError for one that is short or odd."""
    place, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE)
    if file is not None:
        place, token = f"--token-file {file}", Path(file).read_text(errors="replace").strip()
    if token is None:
        return None
    if len(token) < _LEAST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(
            f"{place} has no token of {_LEAST_TOKEN} or more letters, digits and signs; make one: openssl rand -hex 32"
        )
    return token


@contextmanager
def _ending_on_signals(server: uvicorn.Server, service: Service, drain_seconds: float) -> Iterator[list[int]]:
    """The first signal ends the server when it has answered; a second one ends the process at once."""
    numbers: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if numbers:
            os._exit(killed_by(number))
        numbers.append(number)
        service.ending = True
        if drain_seconds:
            signal.setitimer(signal.ITIMER_REAL, drain_seconds)
        else:
            server.should_exit = True

    def drained(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    before = {
        number: signal.signal(number, handle)
        for number in ENDING_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, drained)
    try:
        yield numbers
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
