"""The metrics of the core of the edge, for Prometheus; each part of the agent adds its own."""

from collections.abc import Callable
from functools import partial

from prometheus_client import Counter, Gauge, Histogram

from edge.link.estimate import LinkEstimate
from edge.report.model import Report
from process.endpoints import process_registry
from process.tls import TlsFiles

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Telemetry:
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
        """Call ``estimate`` at every collection of `cloud_available`; it must not wait."""
        self._cloud.set_function(lambda: float(estimate().available))

    def observe_expiries(self, files: TlsFiles) -> None:
        """Show when the certificate of each setting expires; a renewed one counts once in use."""
        for setting in files.current().expiries:
            self._expiry.labels(setting).set_function(partial(files.expiry_s, setting))

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
        """Count one report."""
        self._studies.labels(report.status.value).inc()
        if report.was_read:
            self._second.labels(report.second_reading.value).inc()
        for entry in report.ledger:
            self._stages.labels(entry.stage).observe(entry.took_s)
        if report.took_s > report.deadline_s:
            self._late.inc()
