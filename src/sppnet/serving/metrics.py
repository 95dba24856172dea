"""Prometheus metrics, served at /metrics."""

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
    """Metrics of one server, in a registry of its own so that a process can hold several servers.

    Args:
        waiting: function that returns the number of requests waiting for a worker.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("sppnet_requests", "Completed requests", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "sppnet_request_seconds",
            "Time from the first byte of a request to its response",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "sppnet_batch_size",
            "Requests per batch",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.pixels = Counter(
            "sppnet_pixels",
            "Image pixels, of network inputs for classifiers, else of photographs",
            registry=self.registry,
        )
        self.taken = Gauge(
            "sppnet_requests_taken", "Requests being received, queued or processed", registry=self.registry
        )
        depth = Gauge("sppnet_requests_waiting", "Requests waiting for a worker", registry=self.registry)
        depth.set_function(waiting)

    def text(self) -> bytes:
        """Return the metrics in the Prometheus text format."""
        return generate_latest(self.registry)
