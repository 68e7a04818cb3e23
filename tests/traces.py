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
                one.name,
                f"{one.context.trace_id:032x}",
                f"{one.context.span_id:016x}",
                f"{one.parent.span_id:016x}" if one.parent else "",
                (one.start_time or 0) / 1e9,
                (one.end_time or 0) / 1e9,
                dict(one.attributes or {}),
            )
            for one in kept.get_finished_spans()
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
            one["name"],
            one["traceId"],
            one["spanId"],
            one.get("parentSpanId", ""),
            int(one["startTimeUnixNano"]) / 1e9,
            int(one["endTimeUnixNano"]) / 1e9,
            {a["key"]: next(iter(a["value"].values())) for a in one.get("attributes", ())},
        )
        for line in lines
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for one in scope["spans"]
    ]
