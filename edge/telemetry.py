"""What the edge tells its operators: logs on standard error, metrics for Prometheus.

Studies go by their random key, and nothing of a DICOM header is told: a traceback comes without the
variables of its frames. It, or an error of the operating system, may contain a path all the same,
and a path may contain a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from edge.errors import BadSettings
from edge.link.estimate import LinkEstimate
from edge.report.model import Report

WITHOUT_LOCALS = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def configure_logging(form: Literal["text", "json"], stream: TextIO) -> None:
    """Sends this process's logs to ``stream``, a line each, for people or as JSON."""
    renderers: list[structlog.typing.Processor]
    if form == "json":
        tracebacks = structlog.processors.ExceptionRenderer(WITHOUT_LOCALS)
        renderers = [tracebacks, structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        colors = stream.isatty()
        renderers = [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *renderers,
        ],
        logger_factory=structlog.PrintLoggerFactory(file=stream),
    )


@dataclass(frozen=True)
class Standing:
    """What there is to do at the beginning of one turn of the daemon.

    Attributes:
        waiting: studies that are claimed and have not come to their end, the one at hand included.
        aside: studies and debts that nothing is done about until the next start.
        owed: reports that owe a second reading.
        oldest_s: age of the oldest of these debts, seconds in which an agent ran; 0 for none.
    """

    waiting: int
    aside: int
    owed: int
    oldest_s: float


class Meters:
    """The edge's metrics; `count` is told of every report, `stands` of every turn."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._studies = self._counter("studies", "Studies reported", "status")
        self._second = self._counter(
            "second_readings", "Second readings by how much came back", "second_reading"
        )
        self._routes = self._counter("candidates", "Candidates by route", "route")
        self._audits = self._counter(
            "audits", "Scans without anything to ask about, by what their audit came to", "outcome"
        )
        self._promises = self._counter(
            "guarantees", "Reports by whether they promise anything of missed nodules", "given"
        )
        self._late = self._counter("late", "Reports after their deadline")
        self._amended = self._counter(
            "amendments", "Amended versions by status of the report", "status"
        )
        self._stages = self._seconds("stage", "Time that each stage of the line took")
        self._given = self._seconds("given", "Time that each stage of the line was given")
        self._waiting = self._gauge("waiting_studies", "Studies claimed and not at their end")
        self._aside = self._gauge("set_aside_studies", "Studies set aside until the next start")
        self._owed = self._gauge("owed_studies", "Reports that owe a second reading")
        self._oldest = self._gauge("owed_oldest_seconds", "Age of the oldest second reading owed")
        self._cloud = self._gauge("cloud_available", "Whether the cloud can be asked now")

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return Counter(f"overread_edge_{name}", says, labels, registry=self.registry)

    def _gauge(self, name: str, says: str) -> Gauge:
        return Gauge(f"overread_edge_{name}", says, registry=self.registry)

    def _seconds(self, name: str, says: str) -> Histogram:
        full_name = f"overread_edge_{name}_seconds"
        return Histogram(full_name, says, ["stage"], buckets=SECONDS, registry=self.registry)

    def watch(self, estimate: Callable[[], LinkEstimate]) -> None:
        """Whoever collects the metrics learns from ``estimate`` whether the cloud can be asked.

        It must not wait: collecting would.
        """
        self._cloud.set_function(lambda: float(estimate().available))

    def stands(self, standing: Standing) -> None:
        """Enters how things stand now."""
        self._waiting.set(standing.waiting)
        self._aside.set(standing.aside)
        self._owed.set(standing.owed)
        self._oldest.set(standing.oldest_s)

    def amended(self, report: Report) -> None:
        """Enters a new version of a report that was counted before."""
        self._amended.labels(report.status.value).inc()

    def count(self, report: Report) -> None:
        """Enters one report."""
        self._studies.labels(report.status.value).inc()
        if report.rejection is None:
            self._second.labels(report.second_reading.value).inc()
            self._promises.labels("yes" if report.guarantee.given else "no").inc()
        if report.audit is not None:
            self._audits.labels(report.audit.outcome.value).inc()
        for decision in report.decisions:
            self._routes.labels(decision.route.value).inc()
        for entry in report.ledger:
            self._stages.labels(entry.stage).observe(entry.took_s)
            self._given.labels(entry.stage).observe(entry.budget_s)
        if report.took_s > report.deadline_s:
            self._late.inc()

    @contextmanager
    def serve(self, host: str, port: int | None) -> Iterator[int | None]:
        """Serve the metrics over HTTP while entered; yield the port, or None if none is set.

        Raises:
            BadSettings: the port cannot be bound.
        """
        if port is None:
            yield None
            return
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            reason = f"metrics at {host}:{port}: {error.strerror}"
            raise BadSettings(f"{reason} (metrics_address, metrics_port)") from error
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
