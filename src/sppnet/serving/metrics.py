"""What Prometheus reads at /metrics."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server, so that several in a process do not mix.

    Args:
        waiting: how many requests wait for a worker.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("sppnet_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "sppnet_request_seconds",
            "From a request's first byte to its answer",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "sppnet_batch_size",
            "Photographs that went through the network together",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.pixels = Counter(
            "sppnet_pixels",
            "Pixels of what was asked about, at the size that a classifier sees, else at its own",
            registry=self.registry,
        )
        self.taken = Gauge("sppnet_requests_taken", "Requests being received or answered", registry=self.registry)
        depth = Gauge("sppnet_requests_waiting", "Requests that wait for a worker", registry=self.registry)
        depth.set_function(waiting)

    def text(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self.registry)
