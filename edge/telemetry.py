"""The metrics of the edge, for Prometheus."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial

from prometheus_client import Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from edge.dicom_out.exports import Backlog
from edge.drift.compare import NAMES
from edge.errors import BadSettings
from edge.link.estimate import LinkEstimate
from edge.models.choose import ShadowState
from edge.report.model import Report
from edge.settings.core import EdgeSettings
from process.endpoints import Checks, process_registry, serving_metrics
from process.http import CannotListen

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _Models(Collector):
    """Which models read, and how far the one in shadow agrees; old versions leave no series."""

    active: Callable[[], tuple[str, str]] | None = None
    shadow: Callable[[], ShadowState | None] | None = None

    def collect(self) -> Iterator[Metric]:
        """Yield all, without samples for what there is not."""
        info = GaugeMetricFamily(
            "overread_edge_model_info",
            "1 for the model that reads (active), and the one that is tried (shadow)",
            labels=["role", "model", "version"],
        )
        studies = GaugeMetricFamily(
            "overread_edge_shadow_studies", "Studies that the model in shadow has read"
        )
        kept = GaugeMetricFamily(
            "overread_edge_shadow_agreement",
            "Part of the findings that the model in shadow puts forward too, 0 to 1",
        )
        if self.active is not None:
            info.add_metric(["active", *self.active()], 1)
        if self.shadow is not None and (tried := self.shadow()) is not None:
            info.add_metric(["shadow", tried.name, tried.version], 1)
            studies.add_metric([], tried.agreement.studies)
            if tried.agreement.kept_share is not None:
                kept.add_metric([], tried.agreement.kept_share)
        yield from (info, studies, kept)


class Telemetry:
    """The metrics of the edge."""

    def __init__(self) -> None:
        self.registry = process_registry("overread_edge")
        self._studies = self._counter("studies", "Reports by status", "status")
        self._second = self._counter(
            "second_readings", "Second readings by completeness", "second_reading"
        )
        self._routes = self._counter("candidates", "Candidates by route", "route")
        self._audits = self._counter(
            "audits", "Studies without an uncertain candidate, by outcome of the audit", "outcome"
        )
        self._guarantees = self._counter(
            "guarantees", "Reports by whether they give a guarantee for missed nodules", "given"
        )
        self._late = self._counter("late_reports", "Reports after their deadline")
        self._amendments = self._counter("amendments", "Amended versions by status", "status")
        self._removed = self._counter(
            "removed", "Studies and reports removed by the limits of what is kept", "kind"
        )
        self._stages = self._seconds("stage_seconds", "Time that each stage took")
        self._budgets = self._seconds("stage_budget_seconds", "Budget of each stage")
        self._claimed = self._gauge("claimed_studies", "Studies claimed and not finished")
        self._suspended = self._gauge(
            "suspended_studies", "Studies and pending reads that wait for the next start"
        )
        self._blocked = self._gauge(
            "blocked_studies", "Studies in the inbox that the agent may not move or read"
        )
        self._pending = self._gauge("pending_studies", "Reports with a pending read")
        self._oldest = self._gauge("pending_oldest_seconds", "Age of the oldest pending read")
        self._deliveries = self._counter(
            "deliveries", "Attempts to deliver objects, by target and outcome", "target", "outcome"
        )
        self._undelivered = self._gauge(
            "undelivered_reports", "Versions of reports that a target waits for", "target"
        )
        self._undelivered_age = self._gauge(
            "undelivered_oldest_seconds", "Age of the oldest one that a target waits for", "target"
        )
        self._dead = self._gauge("dead_letters", "Deliveries that were given up", "target")
        self._unmade = self._gauge(
            "unexported_reports", "Versions of reports whose objects are not made yet"
        )
        self._cloud = self._gauge("cloud_available", "1 if the cloud is available, else 0")
        self._received = self._counter("received_instances", "Instances received", "way")
        self._refused = self._counter(
            "refused_instances", "Instances refused by reason", "way", "reason"
        )
        self._refused_associations = self._counter(
            "refused_associations", "Associations and connections refused by reason", "reason"
        )
        self._associations = self._gauge("open_associations", "DICOM associations open now")
        self._expiry = self._gauge(
            "certificate_expiry_timestamp_seconds", "When each certificate expires", "setting"
        )

        self._drift = self._gauge(
            "drift_level", "0 steady, 1 watch, 2 alarm, for each measure of drift", "measure"
        )
        self._models = _Models()
        self.registry.register(self._models)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"overread_edge_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"overread_edge_{name}", text, labels, registry=self.registry)

    def _seconds(self, name: str, text: str) -> Histogram:
        full_name = f"overread_edge_{name}"
        return Histogram(full_name, text, ["stage"], buckets=SECONDS, registry=self.registry)

    def observe_link(self, estimate: Callable[[], LinkEstimate]) -> None:
        """Call ``estimate`` at every collection of `cloud_available`; it must not wait."""
        self._cloud.set_function(lambda: float(estimate().available))

    def observe_drift(self, level: Callable[[str], float]) -> None:
        """Call ``level`` with each measure of drift at every collection of `drift_level`."""
        for name in NAMES:
            self._drift.labels(name).set_function(partial(level, name))

    def observe_models(
        self, active: Callable[[], tuple[str, str]], shadow: Callable[[], ShadowState | None]
    ) -> None:
        """Call both at every collection: ``active`` returns name and version of the model."""
        self._models.active, self._models.shadow = active, shadow

    def set_expiries(self, expiries: Mapping[str, datetime]) -> None:
        """Set when the certificate of each setting expires."""
        for setting, end in expiries.items():
            self._expiry.labels(setting).set(end.timestamp())

    def set_backlog(self, claimed: int, suspended: int, pending: int, oldest_s: float) -> None:
        """Set the gauges of the work that is left at the beginning of a pass of the main loop.

        ``oldest_s`` is the age of the oldest pending read in seconds of running time, 0 for none.
        """
        self._claimed.set(claimed)
        self._suspended.set(suspended)
        self._pending.set(pending)
        self._oldest.set(oldest_s)

    def count_delivery(self, target: str, outcome: str) -> None:
        """Count an attempt to deliver objects: ``sent``, ``failed``, or ``dead`` for the last."""
        self._deliveries.labels(target, outcome).inc()

    def set_deliveries(self, backlogs: Mapping[str, Backlog], making: int) -> None:
        """Set the gauges of deliveries; ``making`` versions have no objects yet."""
        self._unmade.set(making)
        for target, backlog in backlogs.items():
            self._undelivered.labels(target).set(backlog.waiting)
            self._undelivered_age.labels(target).set(backlog.oldest_s)
            self._dead.labels(target).set(backlog.dead)

    def set_blocked(self, count: int) -> None:
        """Set the gauge of studies in the inbox that the agent may not move or read."""
        self._blocked.set(count)

    def count_removal(self, kind: str) -> None:
        """Count a study or report that was removed because of its age, or for its size."""
        self._removed.labels(kind).inc()

    def count_received(self, way: str) -> None:
        """Count an instance that was stored; ``way`` is dicom or stow."""
        self._received.labels(way).inc()

    def count_refused_instance(self, way: str, reason: str) -> None:
        """Count an instance that was refused."""
        self._refused.labels(way, reason).inc()

    def count_refused_association(self, reason: str) -> None:
        """Count an association that was rejected, or a connection that was refused."""
        self._refused_associations.labels(reason).inc()

    def set_associations(self, number: int) -> None:
        """Set how many associations are open."""
        self._associations.set(number)

    def count_amendment(self, report: Report) -> None:
        """Count a new version of a report that was counted before."""
        self._amendments.labels(report.status.value).inc()

    def count_report(self, report: Report) -> None:
        """Count one report."""
        self._studies.labels(report.status.value).inc()
        if report.was_read:
            self._second.labels(report.second_reading.value).inc()
            self._guarantees.labels("yes" if report.guarantee.given else "no").inc()
        if report.audit is not None:
            self._audits.labels(report.audit.outcome.value).inc()
        for decision in report.decisions:
            self._routes.labels(decision.route.value).inc()
        for entry in report.ledger:
            self._stages.labels(entry.stage).observe(entry.took_s)
            self._budgets.labels(entry.stage).observe(entry.budget_s)
        if report.took_s > report.deadline_s:
            self._late.inc()

    @contextmanager
    def serve(
        self, settings: EdgeSettings, alive: Checks | None = None, ready: Checks | None = None
    ) -> Iterator[str | None]:
        """Serve metrics and checks over HTTP while entered; yield the address, None if off.

        Raises:
            BadSettings: the port cannot be bound.
        """
        at = settings.metrics_address
        with ExitStack() as parts:
            try:
                metrics = serving_metrics(self.registry, at, alive or {}, ready or {})
                address = parts.enter_context(metrics)
            except CannotListen as error:
                raise BadSettings(str(error)) from error
            yield address
