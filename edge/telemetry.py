"""The metrics of the core of the edge, for Prometheus; each part of the agent adds its own."""

from collections.abc import Callable, Iterator
from functools import partial

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from edge.link.estimate import LinkEstimate
from edge.link.link import Traffic
from edge.report.model import Report
from process.endpoints import process_registry
from process.memory import peak_bytes
from process.tls import TlsFiles

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class EdgeTelemetry:
    """The metrics of the core, and the registry of all."""

    def __init__(self) -> None:
        self.registry = process_registry("overread_edge")
        self._studies = self.counter("studies", "Reports by status", "status")
        self._second = self.counter(
            "second_readings", "Second readings by completeness", "second_reading"
        )
        self._late = self.counter("late_reports", "Reports after their deadline")
        self._stages = Histogram(
            "overread_edge_stage_seconds",
            "Time that each stage took",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._claimed = self.gauge("claimed_studies", "Studies claimed and not finished")
        self._suspended = self.gauge(
            "suspended_studies", "Studies and pending reads that wait for the next start"
        )
        self._blocked = self.gauge(
            "blocked_studies", "Studies in the inbox that the agent may not move or read"
        )
        self._pending = self.gauge("pending_studies", "Reports with a pending read")
        self._oldest = self.gauge("pending_oldest_seconds", "Age of the oldest pending read")
        self._cloud = self.gauge("cloud_available", "1 if the cloud is available, else 0")
        self._round_trip = self.gauge(
            "cloud_round_trip_seconds", "Median time of a small message to the cloud and back"
        )
        self.traffic = TrafficMetrics()
        self.registry.register(self.traffic)
        text = "Most memory in each stage of the last study; read child: that of the process"
        self._memory, self._stage = self.gauge("memory_peak_bytes", text, "stage"), ""
        self._expiry = self.gauge(
            "certificate_expiry_timestamp_seconds", "When each certificate expires", "setting"
        )

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Return a new counter, ``overread_edge_NAME``."""
        return Counter(f"overread_edge_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Return a new gauge, ``overread_edge_NAME``."""
        return Gauge(f"overread_edge_{name}", text, labels, registry=self.registry)

    def observe_link(self, estimate: Callable[[], LinkEstimate]) -> None:
        """Call ``estimate`` at every collection of what is known of the link; it must not wait."""
        self._cloud.set_function(lambda: float(estimate().available))
        self._round_trip.set_function(lambda: estimate().middle.round_trip_s)

    def observe_expiries(self, files: TlsFiles) -> None:
        """Show when the certificate of each setting expires; a renewed one counts once in use."""
        for setting in files.current().expiries:
            self._expiry.labels(setting).set_function(partial(files.expiry_s, setting))

    def observe_reading(self, peak_mb: Callable[[], float]) -> None:
        """Show the peak of the last child process that read a study; ``peak_mb`` is in MiB."""
        self._memory.labels("read child").set_function(lambda: 2.0**20 * peak_mb())

    def begin_stage(self, stage: str) -> None:
        """Note that a stage begins, or none, and with that how much memory the last one took."""
        peak = peak_bytes(begin=True)
        if self._stage:
            self._memory.labels(self._stage).set(peak)
        self._stage = stage

    def set_backlog(self, claimed: int, suspended: int, pending: int, oldest_s: float) -> None:
        """Set the gauges of the work that is left at the beginning of a pass of the main loop.

        ``oldest_s`` is the age of the oldest pending read in seconds of running time, 0 for none.
        """
        self._claimed.set(claimed)
        self._suspended.set(suspended)
        self._pending.set(pending)
        self._oldest.set(oldest_s)

    def set_blocked(self, count: int) -> None:
        """Set the gauge of studies in the inbox that the agent may not move or read."""
        self._blocked.set(count)

    def count_report(self, report: Report) -> None:
        """Count one report, with which its last stage ends."""
        self.begin_stage("")
        self._studies.labels(report.status.value).inc()
        if report.was_read:
            self._second.labels(report.second_reading.value).inc()
        for entry in report.ledger:
            self._stages.labels(entry.stage).observe(entry.took_s)
        if report.took_s > report.deadline_s:
            self._late.inc()


class TrafficMetrics(Collector):
    """What goes to clouds and comes back, as ``traffic`` returns it for all links together."""

    def __init__(self) -> None:
        self.traffic: Callable[[], Traffic] = Traffic

    def collect(self) -> Iterator[Metric]:
        """Yield bytes by direction, and the time to encode and decode them."""
        now, name = self.traffic(), "overread_edge_cloud"
        size = CounterMetricFamily(
            f"{name}_bytes", "Bytes of messages to the cloud and from it", labels=["direction"]
        )
        size.add_metric(["sent"], now.sent_bytes)
        size.add_metric(["received"], now.received_bytes)
        yield size
        text = "Time to encode and decode messages to the cloud and from it"
        yield CounterMetricFamily(f"{name}_coding_seconds", text, value=now.coding_s)
