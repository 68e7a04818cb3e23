"""The metrics of the cloud, for Prometheus."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cloud.errors import AddressUnusable
from cloud.settings import CloudSettings
from process.endpoints import Checks, address_text, serve

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Telemetry:
    """The metrics of one service; nothing is served until `serve` is entered.

    A stream's ``end`` is ``complete``, ``cancelled`` or an error class. An ROI's ``outcome`` is
    ``verdict``, ``cached``, ``repeated`` or an error class; one without an outcome when its stream
    ends has the end of its stream. Each stream has one end, and each ROI that arrives one outcome.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.streams = self._counter("streams", "Studies by how they ended", "end")
        self.rois = self._counter("rois", "ROIs by outcome", "outcome")
        self.wasted_s = self._counter(
            "wasted_seconds", "Model time of ROIs whose answer was late or no longer wanted"
        )
        self.demoted = self._counter(
            "demoted_streams", "Stat studies of callers that may not send stat, read as routine"
        )
        self.preempted = self._counter("preempted_rois", "Queued ROIs that others preempted")
        self.batch_rois = self._histogram("batch_rois", "ROIs in a batch", (1, 2, 4, 8, 16, 32))
        self.compute_s = self._histogram(
            "compute_seconds", "Time of a batch in the model", _SECONDS
        )
        self.queue_s = self._histogram("queue_seconds", "Wait of an answered ROI", _SECONDS)
        self._expiry = self._gauge(
            "certificate_expiry_timestamp_seconds", "When each certificate expires", "setting"
        )

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"overread_cloud_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"overread_cloud_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"overread_cloud_{name}", meaning, buckets=buckets, registry=self.registry)

    def set_expiries(self, expiries: Mapping[str, datetime]) -> None:
        """Set when the certificate of each setting expires."""
        for setting, end in expiries.items():
            self._expiry.labels(setting).set(end.timestamp())

    def add_gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Add the gauge ``overread_cloud_<name>``, which shows what ``value`` returns."""
        self._gauge(name, meaning).set_function(value)

    @contextmanager
    def serve(
        self, settings: CloudSettings, alive: Checks | None = None, ready: Checks | None = None
    ) -> Iterator[str | None]:
        """Serve metrics and checks over HTTP while entered; yield the address, None if off.

        Raises:
            AddressUnusable: the port cannot be bound.
        """
        host, port = settings.metrics_address, settings.metrics_port
        if port is None:
            yield None
            return
        with ExitStack() as parts:
            try:
                address = parts.enter_context(
                    serve(self.registry, host, port, alive or {}, ready or {})
                )
            except OSError as error:
                raise AddressUnusable(
                    f"metrics at {address_text(host, port)}: {error.strerror}"
                    " (metrics_address, metrics_port)"
                ) from error
            yield address
