"""Makes spans and sends them to a collector (OTLP over HTTP) or a file. Needs the extra ``trace``.

Spans wait in a queue of bounded length; where it is full, the oldest ones are dropped. A thread
sends them. So a collector that is down costs spans, and nothing else.
"""

import base64
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased

from process.tracing import is_url, recording, root_span_id, root_study

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

# no text of an attribute looks so: there a quotation mark is escaped
_BASE64_ID = re.compile(r'"(traceId|spanId|parentSpanId)":"([^"]+)"')

log = structlog.get_logger()


@contextmanager
def exporting(service: str, traces: str) -> Iterator[None]:
    """Record the spans of this process while entered, and send what is left at the end.

    A destination that does not answer delays nothing, the end by two seconds at most.

    Raises:
        OSError: the file cannot be written.
    """
    with opened(service, exporter_of(traces)) as provider, recording(provider):
        yield


@contextmanager
def opened(service: str, exporter: SpanExporter) -> Iterator[TracerProvider]:
    """Make spans of ``service`` for ``exporter``; complaints of OpenTelemetry go into the log."""
    names = {"service.name": service, "service.version": version("overread")}
    provider = TracerProvider(
        sampler=ParentBased(ALWAYS_ON),
        resource=Resource.create(names),
        shutdown_on_exit=False,
        id_generator=_Ids(),
    )
    provider.add_span_processor(
        BatchSpanProcessor(exporter, QUEUE_SPANS, DELAY_S * 1e3, QUEUE_SPANS // 4)
    )
    logger = logging.getLogger("opentelemetry")
    logger.propagate, logger.handlers = False, [_Complaints()]
    try:
        yield provider
    finally:
        closing = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(STOP_S)
        logger.handlers = [logging.NullHandler()]  # a thread that still waits complains to nobody
        if closing.is_alive():
            log.warning("the last spans are lost, nobody takes them")
            exporter.shutdown()


def exporter_of(traces: str) -> SpanExporter:
    """Return what sends spans to a collector's address, or writes them to a file.

    An address without a path gets that of OTLP. The collector's authority is that of the system,
    or the one that ``OTEL_EXPORTER_OTLP_CERTIFICATE`` in the environment names.

    Raises:
        OSError: the file cannot be written.
    """
    if not is_url(traces):
        return FileExporter(Path(traces))
    has_path = urlsplit(traces).path.strip("/")
    url = traces if has_path else f"{traces.rstrip('/')}/v1/traces"
    return OTLPSpanExporter(url, timeout=EXPORT_S)


class _Ids(RandomIdGenerator):
    """Random ids, but for the root of a study."""

    def generate_trace_id(self) -> int:
        key = root_study.get()
        return int(key, 16) if key else super().generate_trace_id()

    def generate_span_id(self) -> int:
        key = root_study.get()
        return int(root_span_id(key), 16) if key else super().generate_span_id()


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
            reason = f"traces cannot be written: {error.strerror}"
            raise OSError(error.errno, reason, str(path)) from error

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append a batch; one that cannot be written is lost."""
        message = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
        line = _BASE64_ID.sub(_in_hexadecimal, json.dumps(message, separators=(",", ":")))
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


def _in_hexadecimal(found: re.Match[str]) -> str:
    """Return an id as OTLP's JSON has it, where JSON of protobuf has base64."""
    return f'"{found[1]}":"{base64.b64decode(found[2]).hex()}"'


class _Complaints(logging.Handler):
    """Logs what OpenTelemetry complains of, once in a while."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next_s = float("-inf")

    def emit(self, record: logging.LogRecord) -> None:
        if (now_s := time.monotonic()) >= self._next_s:
            self._next_s = now_s + SAY_EVERY_S
            log.warning("traces are lost", reason=record.getMessage())
