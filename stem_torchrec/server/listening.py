"""The socket that the server listens at, and why it may not be had."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from stem_torchrec.runtime.errors import UserError

_WAITING = 2048
"""Connections that the system keeps until the server takes them."""


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address, and does not listen yet.

    Raises UserError for an address that is none of this machine, or where another process listens. Two processes may
    bind one port until one of them listens; `start_listening` tells the other.
    """
    with ExitStack() as on_error, _told(host, port):
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = on_error.enter_context(socket.socket(family, kind, protocol))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        on_error.pop_all()
    return bound


def start_listening(bound: socket.socket, host: str, port: int) -> None:
    """Lets clients in; raises UserError if another process listens at the port meanwhile."""
    with _told(host, port):
        bound.listen(_WAITING)


@contextmanager
def _told(host: str, port: int) -> Iterator[None]:
    try:
        yield
    # UnicodeError: a name with an empty or long part.
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} and --http {port} cannot be listened at ({reason}); give others.") from error
