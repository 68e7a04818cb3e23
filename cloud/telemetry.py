"""The metrics of the cloud, for Prometheus."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime

from prometheus_client import Counter, Gauge, Histogram

from process.endpoints import Checks, process_registry, serving_metrics
from protos.errors import TABLE
from protos.messages import Priority

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2,
    0.3, 0.5, 1.0, 3.0, 10.0, 30.0,
)  # fmt: skip
"""Bounds of the histograms of an ROI and a batch: fine where budgets are decided, to 200 ms."""

_STUDY_SECONDS = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,
    0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip

COMPLETE, CANCELLED = "complete", "cancelled"
"""Ends of a study besides the error classes."""

NO_PRIORITY = "unknown"
"""Priority of a study that ended before its header was valid."""


class Telemetry:
    """The metrics of one service; nothing is served until `serve` is entered.

    The ``end`` of a study is ``complete``, ``cancelled`` or an error class. An ROI's ``outcome`` is
    ``verdict``, ``cached``, ``repeated`` or an error class; one without an outcome when its stream
    ends has the end of its stream. Each study has one end, and each ROI that arrives one outcome.
    ``priority`` is ``stat``, ``routine`` or ``unknown``. No label holds what a caller chooses
    freely: neither sites nor study keys are labels.
    """

    def __init__(self) -> None:
        self.registry = process_registry("overread_cloud")
        self.streams = self._counter("streams", "Studies by how they ended", "end", "priority")
        self.rois = self._counter("rois", "ROIs by outcome", "outcome", "priority")
        self.study_s = self._histogram(
            "study_seconds", "Time from the call to the end of a study", _STUDY_SECONDS,
            "end", "priority",
        )  # fmt: skip
        self.wasted_s = self._counter(
            "wasted_seconds", "Model time of ROIs whose answer was late or no longer wanted"
        )
        self.demoted = self._counter(
            "demoted_streams", "Stat of callers that may not send it, read as routine"
        )
        self.compute_s = self._histogram(
            "compute_seconds", "Time of a batch in the model", _SECONDS
        )
        self.queue_s = self._histogram("queue_seconds", "Wait of an answered ROI", _SECONDS)
        self._model = self._gauge(
            "model_info", "1 for the model that is served", "model", "version", "engine"
        )
        # an increase from nothing is no increase to Prometheus: series that alerts need begin at 0
        for error in {kind.__name__ for _, kinds in TABLE for kind in kinds}:
            self.streams.labels(error, NO_PRIORITY)  # most are refused before their header
            for priority in Priority:
                self.streams.labels(error, priority.value)
                self.rois.labels(error, priority.value)
        self._expiry = self._gauge(
            "certificate_expiry_timestamp_seconds", "When each certificate expires", "setting"
        )

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"overread_cloud_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(f"overread_cloud_{name}", meaning, labels, registry=self.registry)

    def _histogram(
        self, name: str, meaning: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"overread_cloud_{name}", meaning, labels, buckets=buckets, registry=self.registry
        )

    def count_study(self, end: str, priority: str, took_s: float) -> None:
        """Count a study that has ended; its duration goes by whether it was complete."""
        self.streams.labels(end, priority).inc()
        kind = end if end in (COMPLETE, CANCELLED) else "failed"
        self.study_s.labels(kind, priority).observe(took_s)

    def set_model(self, name: str, version: str, engine: str) -> None:
        """Say which model is served."""
        self._model.labels(name, version, engine).set(1)

    def set_expiries(self, expiries: Mapping[str, datetime]) -> None:
        """Set when the certificate of each setting expires."""
        for setting, end in expiries.items():
            self._expiry.labels(setting).set(end.timestamp())

    def add_gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Add the gauge ``overread_cloud_<name>``, which shows what ``value`` returns."""
        self._gauge(name, meaning).set_function(value)

    def serve(
        self, address: str, alive: Checks | None = None, ready: Checks | None = None
    ) -> AbstractContextManager[str | None]:
        """Serve metrics and checks over HTTP while entered, see `serving_metrics`."""
        return serving_metrics(self.registry, address, alive or {}, ready or {})
