"""What Prometheus reads at /metrics."""

from collections.abc import Callable
from weakref import WeakSet

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector

from stem_torchrec.server.served_bundle import ServedBundle

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16_384)


class Metrics:
    """The numbers of one server.

    Args:
        queued_rows: returns how many rows wait.
        body_bytes: returns how many bytes the bodies have that are under way.
    """

    def __init__(self, queued_rows: Callable[[], int], body_bytes: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        disable_created_metrics()
        names = ("endpoint", "status")
        self.requests = Counter("stem_requests", "Requests that were answered.", names, registry=registry)
        self.seconds = Histogram(
            "stem_request_seconds",
            "From a request's head to its answer.",
            names[:1],
            buckets=_SECONDS,
            registry=registry,
        )
        self.rows = Counter("stem_rows", "Rows that were scored, or were wrong.", ("outcome",), registry=registry)
        self.batch_rows = Histogram(
            "stem_batch_rows", "Rows that were scored at once.", buckets=_ROWS, registry=registry
        )
        self.swaps = Counter(
            "stem_swaps", "New bundles that took over, or were refused.", ("outcome",), registry=registry
        )
        self._bundle = Info("stem_bundle", "The bundle that answers.", registry=registry)
        Gauge("stem_queue_rows", "Rows that wait.", registry=registry).set_function(queued_rows)
        Gauge("stem_body_bytes", "Bytes of the bodies under way.", registry=registry).set_function(body_bytes)
        self._bundles = WeakSet[ServedBundle]()
        loaded = Gauge("stem_bundles_loaded", "Bundles in memory: one, and more while requests end.", registry=registry)
        loaded.set_function(lambda: len(self._bundles))
        ProcessCollector(registry=registry)

    def show_bundle(self, served: ServedBundle) -> None:
        """Names the bundle that answers."""
        self._bundles.add(served)
        self._bundle.info({"version": served.version, "folder": served.bundle.folder.name})

    def text(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self._registry)
