"""Traces: what one study took in edge and cloud, as spans with a beginning and an end.

A study key is a random number of 128 bits in hexadecimal, and so is a trace id. The study key *is*
the trace id, and the id of the root span follows from it. So every span of a study, in whatever
process and after whatever restart, finds its trace without a stored context.

Like the log, the tracer belongs to the process: `exporting` sets it, and the functions here use it.
Without a destination nothing is recorded, and OpenTelemetry is not imported: it is the extra
``trace``. No attribute may hold data of a patient, a path, or a UID of DICOM.
"""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from structlog.contextvars import bound_contextvars
from structlog.typing import EventDict

EXTRA = "overread[trace]"
TRACEPARENT = "traceparent"
"""Name of the metadata and of the HTTP header (W3C Trace Context)."""
TRACES_PATH = "/v1/traces"
"""Where a collector takes spans (OTLP over HTTP)."""

_KEY = re.compile(r"(?!0{32})[0-9a-f]{32}")

Attribute = str | bool | int | float


@dataclass(frozen=True)
class TraceDestination:
    """Where spans go: to the OTLP endpoint of a collector, or into a file; by default nowhere."""

    endpoint: str | None = None
    file: Path | None = None
    ca: Path | None = None

    def problem(self) -> str:
        """Return what is wrong with these settings; empty if nothing is."""
        if self.endpoint is None and self.file is None:
            return "trace_ca requires trace_endpoint" if self.ca else ""
        if self.endpoint is not None and self.file is not None:
            return "trace_endpoint and trace_file exclude each other: set one of them"
        if self.endpoint is not None and not _is_url(self.endpoint):
            return (
                f"trace_endpoint = {self.endpoint!r}: expected an address with http:// or https://,"
                " such as http://localhost:4318"
            )
        try:
            import_module("process.otel")
        except ImportError:
            setting = "trace_file" if self.endpoint is None else "trace_endpoint"
            return f"{setting} needs OpenTelemetry: install it with pip install '{EXTRA}'"
        return ""

    @property
    def url(self) -> str:
        """The address for spans; one without a path gets that of OTLP."""
        address = self.endpoint or ""
        has_path = urlsplit(address).path.strip("/")
        return address if has_path else address.rstrip("/") + TRACES_PATH


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


class Span:
    """A span, here one that is not recorded; ``traceparent`` names it to its children."""

    traceparent = ""

    @property
    def trace_id(self) -> str:
        """The trace that it belongs to; empty if it is not recorded."""
        return self.traceparent[3:35]

    def set(self, **attributes: Attribute) -> None:
        """Add attributes."""

    def end(self, fault: str = "", at_s: float | None = None) -> None:
        """End it now, or at a wall-clock time; ``fault`` is the class of what went wrong."""


class Tracer:
    """Makes spans, here none that is recorded."""

    records = False

    def begin(
        self,
        name: str,
        parent: str = "",
        *,
        is_server: bool = False,
        study_key: str = "",
        start_s: float | None = None,
    ) -> Span:
        """Begin a span now, or at a wall-clock time.

        ``parent`` is a traceparent; where it is none, a trace begins. With a ``study_key`` the span
        is the root of that study.
        """
        del name, parent, is_server, study_key, start_s
        return NOT_RECORDED


NOT_RECORDED = Span()
_tracer = Tracer()
_parent = ContextVar("parent", default="")


@contextmanager
def exporting(service: str, destination: TraceDestination) -> Iterator[None]:
    """Record the spans of this process while entered, and send what is left at the end.

    A destination that does not answer delays nothing, the end by two seconds at most.

    Raises:
        OSError: the file cannot be written.
    """
    if destination.endpoint is None and destination.file is None:
        yield
        return
    otel = import_module("process.otel")
    with otel.opened(service, destination) as tracer, recording(tracer):
        yield


@contextmanager
def recording(tracer: Tracer) -> Iterator[None]:
    """Use ``tracer`` in this process while entered."""
    global _tracer
    before, _tracer = _tracer, tracer
    try:
        yield
    finally:
        _tracer = before


def begin(name: str, parent: str = "", *, is_server: bool = False) -> Span:
    """Begin a span that its caller ends; it is not the parent of what happens meanwhile."""
    return _tracer.begin(name, parent, is_server=is_server)


def record(name: str, parent: str, start_s: float, end_s: float, **attributes: Attribute) -> None:
    """Record a span that has ended, by wall-clock times in seconds."""
    if parent:
        span = _tracer.begin(name, parent, start_s=start_s)
        span.set(**attributes)
        span.end(at_s=max(start_s, end_s))


def record_study(study_key: str, start_s: float, end_s: float, **attributes: Attribute) -> None:
    """Record the root of a study, by wall-clock times in seconds."""
    if root_of(study_key):
        span = _tracer.begin("study", study_key=study_key, start_s=start_s)
        span.set(**attributes)
        span.end(at_s=max(start_s, end_s))


def root_of(study_key: str) -> str:
    """Return the traceparent of a study's root; empty where nothing is recorded."""
    if not _tracer.records or not _KEY.fullmatch(study_key):
        return ""
    return f"00-{study_key}-{root_span_id(study_key)}-01"


def root_span_id(study_key: str) -> str:
    """Return the id of the root span of a study."""
    return hashlib.sha256(f"study {study_key}".encode()).hexdigest()[:16]


@contextmanager
def study(study_key: str) -> Iterator[None]:
    """Let the spans of this thread be those of a study, and its log lines name the study."""
    token = _parent.set(root_of(study_key))
    try:
        with bound_contextvars(study_key=study_key):
            yield
    finally:
        _parent.reset(token)


@contextmanager
def span(name: str, **attributes: Attribute) -> Iterator[Span]:
    """Run a part of a study as a span; outside of a study nothing is recorded.

    An exception is noted by its class alone: its message may name a file.
    """
    parent = _parent.get()
    if not parent:
        yield NOT_RECORDED
        return
    begun = _tracer.begin(name, parent)
    begun.set(**attributes)
    token, fault = _parent.set(begun.traceparent), ""
    try:
        yield begun
    except BaseException as error:
        fault = type(error).__name__
        raise
    finally:
        _parent.reset(token)
        begun.end(fault)


def traceparent() -> str:
    """Return the traceparent of the span that this thread is in; empty for none."""
    return _parent.get()


def log_trace(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Add the trace to a line of the log that names a study: a processor of structlog."""
    if "trace_id" not in event and root_of(str(event.get("study_key", ""))):
        event["trace_id"] = event["study_key"]
    return event


def loggable(study_key: str) -> dict[str, str]:
    """Return the key for a log line; nothing where it is not random and might say something."""
    return {"study_key": study_key} if _KEY.fullmatch(study_key) else {}


def wall_s(monotonic_s: float, now_s: float) -> float:
    """Return the wall-clock time of a moment on a monotonic clock that shows ``now_s`` now."""
    return time.time() - (now_s - monotonic_s)
