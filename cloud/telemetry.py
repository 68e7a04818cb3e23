"""The metrics of the cloud, for Prometheus."""

from collections.abc import Callable
from functools import partial
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from process.endpoints import process_registry
from process.memory import peak_bytes
from process.tls import TlsFiles
from protos import overread_pb2 as pb
from protos.codec import Outcome, encode_response
from protos.errors import OVER_SHARE, TABLE
from protos.messages import Accepted, Priority, Summary

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


class CloudTelemetry:
    """The metrics of one service.

    The ``end`` of a study is ``complete``, ``cancelled`` or an error class. An ROI's ``outcome`` is
    ``verdict``, ``cached``, ``repeated`` or an error class; one without an outcome when its stream
    ends has the end of its stream. Each study has one end, and each ROI that arrives one outcome.
    ``priority`` is ``stat``, ``routine`` or ``unknown``. No label holds what a caller chooses
    freely: neither sites nor study keys are labels. What a site, alone, sends beyond its share
    is ``OverShare`` in place of ``Overloaded``: the autoscaler leaves it out.
    """

    def __init__(self) -> None:
        self.registry = process_registry("overread_cloud")
        self._own: dict[str, Any] = {"namespace": "overread_cloud", "registry": self.registry}
        own, ended = self._own, ("end", "priority")
        self.streams = Counter("streams", "Studies by how they ended", ended, **own)
        self.rois = Counter("rois", "ROIs by outcome", ("outcome", "priority"), **own)
        took = "Time from the call to the end of a study"
        self.study_s = Histogram("study_seconds", took, ended, buckets=_STUDY_SECONDS, **own)
        wasted = "Model time of ROIs whose answer was late or no longer wanted"
        self.wasted_s = Counter("wasted_seconds", wasted, **own)
        demoted = "Stat of callers that may not send it, read as routine"
        self.demoted = Counter("demoted_streams", demoted, **own)
        batch = "Time of a batch in the model"
        self.compute_s = Histogram("compute_seconds", batch, buckets=_SECONDS, **own)
        wait = "Wait of an answered ROI"
        self.queue_s = Histogram("queue_seconds", wait, buckets=_SECONDS, **own)
        model = ("model", "version", "engine")
        self.model = Gauge("model_info", "1 for the model that is served", model, **own)
        size = "Bytes of messages from callers and to them"
        self.bytes = Counter("bytes", size, ("direction",), **own)
        self.add_gauge("memory_peak_bytes", "Most memory since the start", peak_bytes)
        expiry = ("certificate_expiry_timestamp_seconds", "When each certificate expires")
        self._expiry = Gauge(*expiry, ("setting",), **own)
        # an increase from nothing is no increase to Prometheus: series that alerts need begin at 0
        for error in {kind.__name__ for _, kinds in TABLE for kind in kinds} | {OVER_SHARE}:
            self.streams.labels(error, NO_PRIORITY)  # most are refused before their header
            for priority in Priority:
                self.streams.labels(error, priority.value)
                self.rois.labels(error, priority.value)

    def encoded(self, message: Outcome | Accepted | Summary) -> pb.ReadResponse:
        """Encode a message, and count its bytes."""
        response = encode_response(message)
        self.bytes.labels("sent").inc(response.ByteSize())
        return response

    def count_study(self, end: str, priority: str, took_s: float) -> None:
        """Count a study that has ended; its duration goes by whether it was complete."""
        self.streams.labels(end, priority).inc()
        kind = end if end in (COMPLETE, CANCELLED) else "failed"
        self.study_s.labels(kind, priority).observe(took_s)

    def observe_expiries(self, files: TlsFiles) -> None:
        """Show when the certificate of each setting expires; a renewed one counts once in use."""
        for setting in files.current().expiries:
            self._expiry.labels(setting).set_function(partial(files.expiry_s, setting))

    def add_gauge(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Add the gauge ``overread_cloud_<name>``, which shows what ``value`` returns."""
        Gauge(name, meaning, **self._own).set_function(value)
