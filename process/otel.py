"""Spans by OpenTelemetry, to a collector (OTLP over HTTP) or a file. Needs the extra ``trace``.

Spans wait in a queue of bounded length; where it is full, the oldest ones are dropped. A thread
sends them. So a collector that is down costs spans, and nothing else.
"""

import base64
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog
from google.protobuf.json_format import MessageToDict
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import Span as OpenTelemetrySpan
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from process import tracing
from process.tracing import TRACEPARENT, Attribute, TraceDestination, root_span_id

QUEUE_SPANS = 2048
"""Most spans that wait; with their attributes they take some megabytes."""
DELAY_S = 1.0
"""Longest wait of a span for others."""
EXPORT_S = 5.0
"""Time to send one batch."""
STOP_S = 2.0
"""How long the end of the process waits for the last spans."""
MAX_FILE_BYTES = 50_000_000
"""Beyond this size a file is renamed to ``NAME.1``, in place of the one before it."""
SAY_EVERY_S = 60.0
"""Shortest time between two lines in the log that spans are lost."""

_PROPAGATOR = TraceContextTextMapPropagator()

log = structlog.get_logger()


class RecordedSpan(tracing.Span):
    """A span of OpenTelemetry."""

    def __init__(self, span: OpenTelemetrySpan) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        context = span.get_span_context()
        if context.is_valid:
            flags = int(context.trace_flags)
            carrier[TRACEPARENT] = f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"
        self.traceparent = carrier.get(TRACEPARENT, "")

    def set(self, **attributes: Attribute) -> None:
        """Add attributes, each with the prefix ``overread.``."""
        self._span.set_attributes({f"overread.{name}": v for name, v in attributes.items()})

    def end(self, fault: str = "", at_s: float | None = None) -> None:
        """End it."""
        if fault:
            self._span.set_attribute("error.type", fault)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(None if at_s is None else round(at_s * 1e9))


class _Ids(IdGenerator):
    """Random ids, but for the root of a study in the thread that begins it."""

    def __init__(self) -> None:
        self._random, self._given = RandomIdGenerator(), threading.local()

    @contextmanager
    def of_study(self, study_key: str) -> Iterator[None]:
        self._given.ids = int(study_key, 16), int(root_span_id(study_key), 16)
        try:
            yield
        finally:
            self._given.ids = None

    def generate_trace_id(self) -> int:
        given = getattr(self._given, "ids", None)
        return given[0] if given else self._random.generate_trace_id()

    def generate_span_id(self) -> int:
        given = getattr(self._given, "ids", None)
        return given[1] if given else self._random.generate_span_id()


class OpenTelemetryTracer(tracing.Tracer):
    """Makes spans of ``service`` and hands them to ``exporter`` in a thread."""

    records = True

    def __init__(self, service: str, exporter: SpanExporter) -> None:
        self._ids, self._exporter = _Ids(), exporter
        names = {"service.name": service, "service.version": version("overread")}
        self._provider = TracerProvider(
            sampler=ParentBased(ALWAYS_ON),
            resource=Resource.create(names),
            shutdown_on_exit=False,
            id_generator=self._ids,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, QUEUE_SPANS, DELAY_S * 1e3, QUEUE_SPANS // 4)
        )
        self._tracer = self._provider.get_tracer("overread")

    def begin(
        self,
        name: str,
        parent: str = "",
        *,
        is_server: bool = False,
        study_key: str = "",
        start_s: float | None = None,
    ) -> tracing.Span:
        """Begin a span; a parent that is no valid traceparent counts as none."""
        context = _PROPAGATOR.extract({TRACEPARENT: parent} if parent else {}, Context())
        start = partial(
            self._tracer.start_span,
            name,
            context,
            SpanKind.SERVER if is_server else SpanKind.INTERNAL,
            start_time=None if start_s is None else round(start_s * 1e9),
            record_exception=False,
            set_status_on_exception=False,
        )
        if not study_key:
            return RecordedSpan(start())
        with self._ids.of_study(study_key):
            return RecordedSpan(start())

    def flush(self) -> None:
        """Hand over all spans that have ended."""
        self._provider.force_flush()

    def close(self) -> None:
        """Send what is left, for `STOP_S` at most."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(STOP_S)
        if closing.is_alive():
            log.warning("the last spans are lost, nobody takes them")
            self._exporter.shutdown()


@contextmanager
def opened(service: str, destination: TraceDestination) -> Iterator[OpenTelemetryTracer]:
    """Open a tracer; what OpenTelemetry says goes into the log of the process.

    Raises:
        OSError: the file cannot be written.
    """
    with _complaints():
        tracer = OpenTelemetryTracer(service, _exporter(destination))
        try:
            yield tracer
        finally:
            tracer.close()


def _exporter(destination: TraceDestination) -> SpanExporter:
    if destination.file is not None:
        return FileExporter(destination.file)
    ca = None if destination.ca is None else str(destination.ca)
    return OTLPSpanExporter(destination.url, certificate_file=ca, timeout=EXPORT_S)


class FileExporter(SpanExporter):
    """Appends spans to a file as OTLP in JSON, one batch a line (OTLP File Exporter).

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._path, self._max_bytes = path, max_bytes
        try:
            self._append(b"")
        except OSError as error:
            reason = f"trace_file cannot be written: {error.strerror}"
            raise OSError(error.errno, reason, str(path)) from error

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append a batch; one that cannot be written is lost."""
        line = json.dumps(_with_hex_ids(MessageToDict(
            encode_spans(spans), use_integers_for_enums=True)), separators=(",", ":"))  # fmt: skip
        try:
            self._append(f"{line}\n".encode())
        except OSError as error:
            logging.getLogger("opentelemetry.file").warning("%s", error.strerror)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def _append(self, data: bytes) -> None:
        if self._path.exists() and self._path.stat().st_size + len(data) > self._max_bytes:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        with open(self._path, "ab", opener=partial(os.open, mode=0o600)) as file:
            file.write(data)


def _with_hex_ids(value: object) -> object:
    """Return the message with its ids in hexadecimal, as OTLP's JSON has them."""
    if isinstance(value, list):
        return [_with_hex_ids(one) for one in value]
    if isinstance(value, dict):
        return {
            name: base64.b64decode(one).hex()
            if name in ("traceId", "spanId", "parentSpanId")
            else _with_hex_ids(one)
            for name, one in value.items()
        }
    return value


class _Complaints(logging.Handler):
    """Logs what OpenTelemetry complains of, once in a while."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next_s = float("-inf")

    def emit(self, record: logging.LogRecord) -> None:
        if (now_s := time.monotonic()) >= self._next_s:
            self._next_s = now_s + SAY_EVERY_S
            log.warning("traces are lost", reason=record.getMessage())


@contextmanager
def _complaints() -> Iterator[None]:
    """Log complaints while entered; afterwards a thread that still waits complains to nobody."""
    logger = logging.getLogger("opentelemetry")
    logger.propagate, logger.handlers = False, [_Complaints()]
    try:
        yield
    finally:
        logger.handlers = [logging.NullHandler()]
