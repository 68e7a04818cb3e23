"""Traces: what one study took in edge and cloud, as spans of OpenTelemetry.

A study key is a random number of 128 bits in hexadecimal, and so is a trace id. The study key *is*
the trace id, and the id of the root span follows from it. So every span of a study, in whatever
process and after whatever restart, finds its trace without a stored context.

Nothing is recorded outside of `recording`: with a destination, a program opens `process.otel`,
which needs the extra ``trace``. No attribute may hold data of a patient, a path, or a UID of DICOM.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Annotated
from urllib.parse import urlsplit

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import AfterValidator
from structlog.contextvars import bound_contextvars
from structlog.typing import EventDict

from process.tls import is_address, is_host

PROPAGATOR = TraceContextTextMapPropagator()
"""Writes and reads ``traceparent``, in metadata and headers (W3C Trace Context)."""

Attribute = str | bool | int | float

_KEY = re.compile(r"(?!0{32})[0-9a-f]{32}")
_NONE = trace.NoOpTracerProvider()
_provider: trace.TracerProvider = _NONE

root_study = ContextVar("root_study", default="")
"""The key of the study whose root span begins; its ids follow from the key."""


def _can_go(traces: str) -> str:
    try:
        host = urlsplit(traces).hostname or ""
        is_wrong = not is_host(host) if is_url(traces) else is_address(traces)
    except ValueError:
        is_wrong = True
    if is_wrong:
        example = "http:// or https://, such as http://localhost:4318"
        raise ValueError(f"expected an address with {example}, or a file")
    if traces and find_spec("opentelemetry.sdk") is None:
        hint = "install it with pip install 'overread[trace]'"
        raise ValueError(f"traces need OpenTelemetry: {hint}")
    return traces


Traces = Annotated[str, AfterValidator(_can_go)]
"""Where traces go: the OTLP address of a collector, or a file; empty for nowhere."""


def is_url(traces: str) -> bool:
    """Tell whether the setting names a collector, not a file."""
    return traces.startswith(("http://", "https://"))


@contextmanager
def recording(provider: trace.TracerProvider) -> Iterator[None]:
    """Record the spans of this process with ``provider`` while entered."""
    global _provider
    before, _provider = _provider, provider
    try:
        yield
    finally:
        _provider = before


def tracer() -> trace.Tracer:
    """Return what makes the spans of this process."""
    return _provider.get_tracer("overread")


def attributes(**values: Attribute) -> dict[str, Attribute]:
    """Return the attributes of a span, each with the prefix ``overread.``."""
    return {f"overread.{name}": value for name, value in values.items()}


def root_of(study_key: str) -> Context | None:
    """Return the context of a study's root span; None where nothing is recorded of it."""
    if _provider is _NONE or not _KEY.fullmatch(study_key):
        return None
    ids = int(study_key, 16), int(root_span_id(study_key), 16)
    root = SpanContext(*ids, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return trace.set_span_in_context(trace.NonRecordingSpan(root), Context())


def root_span_id(study_key: str) -> str:
    """Return the id of the root span of a study, in hexadecimal."""
    return hashlib.sha256(f"study {study_key}".encode()).hexdigest()[:16]


@contextmanager
def study(study_key: str) -> Iterator[None]:
    """Let the spans of this thread be those of a study, and its log lines name the study."""
    token = context.attach(root_of(study_key) or Context())
    try:
        with bound_contextvars(study_key=study_key):
            yield
    finally:
        context.detach(token)


@contextmanager
def span(name: str, **values: Attribute) -> Iterator[Span]:
    """Run a part of a study as a span; outside of a study nothing is recorded.

    An exception is noted by its class alone: its message may name a file.
    """
    if not trace.get_current_span().get_span_context().is_valid:
        yield trace.INVALID_SPAN
        return
    with tracer().start_as_current_span(
        name, attributes=attributes(**values), record_exception=False, set_status_on_exception=False
    ) as begun:
        try:
            yield begun
        except BaseException as error:
            fail(begun, type(error).__name__)
            raise


def fail(failed: Span, error: str) -> None:
    """Note that what a span stands for failed, by the class of the error."""
    failed.set_attribute("error.type", error)
    failed.set_status(StatusCode.ERROR)


def record(name: str, parent: Context, start_s: float, end_s: float, **values: Attribute) -> None:
    """Record a span that has ended, by wall-clock times in seconds."""
    begun = tracer().start_span(
        name, parent, attributes=attributes(**values), start_time=round(start_s * 1e9)
    )
    begun.end(round(max(start_s, end_s) * 1e9))


def record_study(study_key: str, start_s: float, end_s: float, **values: Attribute) -> None:
    """Record the root of a study, by wall-clock times in seconds."""
    if root_of(study_key) is not None:
        token = root_study.set(study_key)
        try:
            record("study", Context(), start_s, end_s, **values)
        finally:
            root_study.reset(token)


def metadata() -> dict[str, str]:
    """Return ``traceparent`` of the span that this thread is in; nothing for none."""
    carrier: dict[str, str] = {}
    PROPAGATOR.inject(carrier)
    return carrier


def log_trace(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Add the trace to a line of the log that names a study: a processor of structlog."""
    if "trace_id" not in event and root_of(str(event.get("study_key", ""))) is not None:
        event["trace_id"] = event["study_key"]
    return event


def loggable(study_key: str) -> dict[str, str]:
    """Return the key for a log line; nothing where it is not random and might say something."""
    return {"study_key": study_key} if _KEY.fullmatch(study_key) else {}
