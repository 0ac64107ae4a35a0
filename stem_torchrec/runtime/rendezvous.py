"""How ranks find each other: the store that one of them serves, its network interface, and the name of each start."""

import os
import re
import socket
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist

from stem_torchrec.runtime.errors import LaunchError, LostRankError, reason_of
from stem_torchrec.runtime.launch_environment import LOOPBACK

JOIN_TIMEOUT = "STEM_JOIN_TIMEOUT"
"""The variable with the seconds that ranks wait for each other when they start."""
_INTERFACE = "GLOO_SOCKET_IFNAME"
_POLL_SECONDS = 0.1


def join_timeout(environ: Mapping[str, str], *, default: float) -> float:
    """Seconds that ranks wait for each other when they start: of STEM_JOIN_TIMEOUT, or the default."""
    text = environ.get(JOIN_TIMEOUT)
    if text is not None and not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise LaunchError(f"{JOIN_TIMEOUT} is {text!r}, but must be a whole number of seconds from 1 to 999999.")
    return default if text is None else float(text)


def choose_interface(*, on_one_host: bool) -> None:
    """Lets gloo listen on loopback if all ranks are on one host; an interface that the user has chosen stays.

    By itself gloo listens on the address that the host's name has, if it has one.
    """
    interfaces = [name for _, name in socket.if_nameindex()]
    chosen = os.environ.get(_INTERFACE)
    if chosen is None and on_one_host and "lo" in interfaces:
        os.environ[_INTERFACE] = "lo"
    unknown = [name for name in (chosen or "").split(",") if name and name not in interfaces]
    if unknown:
        raise LaunchError(f"{_INTERFACE} names {unknown[0]!r}, but this host has {', '.join(interfaces)}.")


def serve_store(host: str = LOOPBACK, port: int = 0) -> dist.TCPStore:
    """A store that this process serves as long as the object lives.

    By itself torch would listen on all interfaces of this host.

    Args:
        host: address of this host to listen on, or an empty string for all of them.
        port: 0 for one that the system chooses.

    Raises LaunchError if the port is taken.
    """
    everywhere = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if everywhere or ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, dualstack_ipv6=everywhere)
    except OSError as error:
        raise LaunchError(
            f"MASTER_PORT is {port}, where rank 0 cannot serve the store of the ranks ({reason_of(error)}); give "
            "another port."
        ) from error
    return dist.TCPStore(
        host or LOOPBACK,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def connect_to_store(host: str, port: int, *, timeout: float) -> dist.TCPStore:
    """A connection to the store that another process serves.

    Args:
        host: name or address of its host.
        port: of the store.
        timeout: seconds to wait until it answers.

    Raises LostRankError if it does not answer, and LaunchError if the host is unknown until the end.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            # torch's own attempts print a stack each.
            socket.create_connection((host, port), timeout=timeout).close()
            return dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=timeout))
        except (OSError, dist.DistError) as error:
            if time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)  # The name of a host may come later than the host, too.
                continue
            sentence = (
                f"no store of the ranks answers at {host} port {port} within {timeout:g} s ({reason_of(error)[:200]}); "
                f"check MASTER_ADDR, MASTER_PORT and the output of rank 0, or allow more seconds with {JOIN_TIMEOUT}."
            )
            raise (LaunchError if isinstance(error, socket.gaierror) else LostRankError)(sentence) from error


def name_start(store: dist.Store, rank: int, world_size: int, *, timeout: float) -> str:
    """A name for this start of the ranks, the same on all ranks and different from those of earlier starts.

    torchrun keeps one store for all starts, which still holds the addresses of ranks that have died, and each host
    counts its restarts for itself. So rank 0 sends its name to every rank that it finds in the store, until each rank
    of this start has confirmed it.

    Args:
        store: shared by all starts.
        rank: of this process.
        world_size: number of ranks of this start.
        timeout: seconds that the ranks wait for each other.

    Raises LostRankError, which names the ranks, if some do not come in time, and LaunchError on a rank that another
    process is as well.
    """
    token = uuid.uuid4().hex
    store.set_timeout(timedelta(seconds=timeout))
    store.set(f"hello/{rank}", token)
    late = f"within {timeout:g} s; the cause is in their output, or allow more seconds with {JOIN_TIMEOUT}."
    if rank:
        try:
            name = store.get(f"name/{token}").decode()
        except dist.DistError as error:
            raise LostRankError(f"rank 0 did not answer rank {rank} {late}") from error
        if store.add(f"confirmed/{name}/{rank}", 1) > 1:
            raise LaunchError(f"RANK is {rank} in another process as well; give each rank a number of its own.")
        return name
    missing, deadline = set(range(1, world_size)), time.monotonic() + timeout
    while missing:
        for other in sorted(missing):
            if store.check([f"hello/{other}"]):
                # Perhaps of a rank that has died; the one that takes its place says hello later.
                store.set(f"name/{store.get(f'hello/{other}').decode()}", token)
            if store.check([f"confirmed/{token}/{other}"]):
                missing.remove(other)
        if time.monotonic() > deadline:
            raise LostRankError(f"ranks {sorted(missing)} of {world_size} did not come {late}")
        time.sleep(0.02)
    return token
