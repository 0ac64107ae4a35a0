"""The options of stem-serve, and the packages that it needs."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Annotated

from annotated_types import Interval

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import LocalFile, LocalFolder

TOKEN_VARIABLE = "STEM_SERVE_TOKEN"
"""The environment variable that may hold the bearer token."""
PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
"""Of the extra `serve`."""


@dataclass(frozen=True)
class LimitOptions:
    """What one request may ask for, and how long; a request beyond a limit is refused."""

    body_mib: Annotated[float, Interval(gt=0, le=4096)] = 16
    """MiB of a body."""
    bodies: Annotated[int, Interval(ge=1, le=10_000)] = 16
    """Bodies of --limits.body-mib, or more smaller ones, that memory holds at once until they are answered; beyond them
    a request is answered by 503."""
    rows: Annotated[int, Interval(ge=1, le=1_000_000)] = 10_000
    """Rows of a request."""
    list_items: Annotated[int, Interval(ge=1, le=10_000_000)] = 10_000
    """Values in one list of a row; a row with more is wrong, and the others are scored."""
    queue_rows: Annotated[int, Interval(ge=1, le=10_000_000)] = 50_000
    """Rows of all requests that wait; beyond them a request is answered by 503 at once."""
    connections: Annotated[int, Interval(ge=1, le=100_000)] = 1000
    """Open connections; beyond them a request is answered by 503 at once."""
    seconds: Annotated[float, Interval(gt=0, le=3600)] = 10
    """Seconds in which the body must have come, and then again seconds in which the rows must have been scored."""


@dataclass(frozen=True)
class BatchOptions:
    """How requests are put together: rows that come while others are scored go into the next batch."""

    rows: Annotated[int, Interval(ge=1, le=1_000_000)] = 1024
    """Rows at which a batch is full; a request with more is a batch of its own."""
    wait_ms: Annotated[float, Interval(ge=0, le=1000)] = 0
    """Milliseconds that the first request of a batch waits for others if nothing is being scored."""


@dataclass(frozen=True)
class ServeConfig:
    """Which bundle to serve, where, and within which limits."""

    bundle: LocalFolder = ""
    """The bundle that stem-export wrote; it may be a link, which is followed again at each swap."""
    http: Annotated[int, Interval(ge=0, le=65535)] = 8000
    """The port; 0 takes a free one, which the first line of output names."""
    host: str = "127.0.0.1"
    """The address to listen at: 0.0.0.0 is every network of this machine, and the default this machine alone."""
    token_file: LocalFile | None = None
    """A file with the bearer token that requests must send; or else STEM_SERVE_TOKEN has it."""
    bundles: LocalFolder | None = None
    """The folder whose bundles a swap may take, by default the one that --bundle is in."""
    name: str = "stem"
    """The name of the model in the Open Inference Protocol."""
    batch: BatchOptions = field(default_factory=BatchOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)
    drain_seconds: Annotated[float, Interval(ge=0, le=600)] = 0
    """Seconds after SIGTERM in which the port stays open while /ready says no, so that balancers look elsewhere."""


def check_packages() -> None:
    """Raises UserError for a package of the extra `serve` that is not installed."""
    for name in PACKAGES:
        if find_spec(name) is None:
            raise UserError(f"stem-serve needs {name}, which is not installed; run: pip install 'stem_torchrec[serve]'")
