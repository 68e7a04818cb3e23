"""Spans as tests look at them, from memory or from a file of OTLP in JSON."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from process import tracing
from process.otel import opened


@dataclass(frozen=True)
class Seen:
    """A span: ids in hexadecimal, wall-clock times in seconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_s: float
    end_s: float
    attributes: dict[str, Any]

    @classmethod
    def of(cls, kept: InMemorySpanExporter) -> list[Self]:
        """Those in memory, in the order in which they ended."""
        return [
            cls(
                span.name,
                f"{span.context.trace_id:032x}",
                f"{span.context.span_id:016x}",
                f"{span.parent.span_id:016x}" if span.parent else "",
                (span.start_time or 0) / 1e9,
                (span.end_time or 0) / 1e9,
                dict(span.attributes or {}),
            )
            for span in kept.get_finished_spans()
        ]


@contextmanager
def recorded(exporter: SpanExporter) -> Iterator[TracerProvider]:
    """Record the spans of this process with this exporter."""
    with opened("test", exporter) as provider, tracing.recording(provider):
        yield provider


def spans_in(file: Path) -> list[Seen]:
    """The spans in a file, whole lines only."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return [
        Seen(
            span["name"],
            span["traceId"],
            span["spanId"],
            span.get("parentSpanId", ""),
            int(span["startTimeUnixNano"]) / 1e9,
            int(span["endTimeUnixNano"]) / 1e9,
            {a["key"]: next(iter(a["value"].values())) for a in span.get("attributes", ())},
        )
        for line in lines
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
