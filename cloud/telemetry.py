"""What an operator sees: Prometheus metrics in a registry of their own, and structured logs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from cloud.errors import AddressUnusable

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Telemetry:
    """The metrics of one service; nothing is served until `serving` is entered."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._streams = Counter(
            "overread_cloud_streams", "Studies by how they ended", ["end"], registry=self.registry
        )
        self._rois = Counter(
            "overread_cloud_rois", "ROIs by outcome", ["outcome"], registry=self.registry
        )
        self._batch = Histogram(
            "overread_cloud_batch_rois",
            "ROIs in a batch",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self._compute = self._seconds("compute", "Time of a batch in the model")
        self._wasted = Counter(
            "overread_cloud_wasted_seconds",
            "Model time of ROIs whose answer came late or was no longer wanted",
            registry=self.registry,
        )
        self._pushed = Counter(
            "overread_cloud_pushed_rois",
            "ROIs that were let in and had to leave for others",
            registry=self.registry,
        )
        self._queue = self._seconds("queue", "Time that an answered ROI waited")

    def _seconds(self, name: str, what: str) -> Histogram:
        return Histogram(
            f"overread_cloud_{name}_seconds", what, buckets=_SECONDS, registry=self.registry
        )

    def stream_ended(self, end: str) -> None:
        """Counts a study; ``end`` is ``complete``, ``cancelled`` or an error class."""
        self._streams.labels(end).inc()

    def roi_ended(self, outcome: str, queue_s: float | None = None, count: int = 1) -> None:
        """Counts ROIs; ``outcome`` is ``verdict``, ``remembered`` or an error class."""
        self._rois.labels(outcome).inc(count)
        if queue_s is not None:
            self._queue.observe(queue_s)

    def batch_read(self, n: int, compute_s: float) -> None:
        """Counts a batch of ``n`` ROIs that took ``compute_s`` seconds."""
        self._batch.observe(n)
        self._compute.observe(compute_s)

    def pushed_out(self, n: int) -> None:
        """Counts ROIs that had to leave the queue for others."""
        self._pushed.inc(n)

    def wasted(self, compute_s: float) -> None:
        """Counts model time that nobody had anything of."""
        self._wasted.inc(compute_s)

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Shows what ``value`` returns as the gauge ``overread_cloud_<name>``."""
        Gauge(f"overread_cloud_{name}", what, registry=self.registry).set_function(value)

    @contextlib.contextmanager
    def serving(self, host: str, port: int | None) -> Iterator[int | None]:
        """Serves the metrics over HTTP while entered; gives the port, None where none is asked.

        Raises:
            AddressUnusable: the port cannot be had.
        """
        if port is None:
            yield None
            return
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise AddressUnusable(f"metrics at {host}:{port}: {error.strerror}") from error
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def configure_logging(*, as_json: bool) -> None:
    """Sends structured logs to stderr, one line an event; they hold no word about a patient."""
    renderer = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
