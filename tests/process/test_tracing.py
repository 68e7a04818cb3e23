"""Traces: each span of a study finds its trace; a destination that is away costs spans alone."""

import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from cloud.settings import CloudSettings
from edge.settings.core import EdgeSettings
from process import tracing
from process.logs import configure_logging
from process.otel import QUEUE_SPANS, FileExporter, exporting
from process.settings import InvalidSettings, ProcessSettings, load
from process.tracing import root_span_id
from tests.traces import Seen, recorded, spans_in

KEY = "0af7651916cd43dd8448eb211c80319c"


def test_without_a_destination_nothing_is_recorded_and_no_sdk_imported() -> None:
    program = f"""
import sys
from process import tracing
import edge.run, cloud.server
with tracing.study("{KEY}"):
    with tracing.span("read") as span:
        span.set_attribute("overread.rois", 1)
        assert not span.is_recording() and tracing.metadata() == {{}}
    tracing.record_study("{KEY}", 0.0, 1.0)
assert not any(name.startswith("opentelemetry.sdk") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("traces", "is_wrong"),
    [
        ("", False),
        ("http://localhost:4318", False),
        ("/var/lib/overread/traces.jsonl", False),
        ("localhost:4318", True),
        ("http://[::1", True),
        ("https:///v1/traces", True),
        ("http://traces..example.org:4318", True),
    ],
)
def test_a_destination_that_cannot_be_is_named(traces: str, is_wrong: bool) -> None:
    error = "traces: expected an address" if is_wrong else None
    with pytest.raises(InvalidSettings, match=error) if error else nullcontext():
        load(CloudSettings, None, {"traces": traces})


@pytest.mark.parametrize("settings", [EdgeSettings, CloudSettings])
def test_without_the_extra_the_setting_names_it(
    settings: type[ProcessSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    said = r"traces: traces need OpenTelemetry: install it with pip install 'overread\[trace\]'"
    with pytest.raises(InvalidSettings, match=said):
        load(settings, None, {"traces": "traces.jsonl"})


def test_all_spans_of_a_study_are_in_its_trace_also_after_a_restart() -> None:
    """The study key is the trace id; the root's id follows from it."""
    first, second = InMemorySpanExporter(), InMemorySpanExporter()
    with recorded(first), tracing.study(KEY), tracing.span("read"):
        pass
    with recorded(second):
        tracing.record_study(KEY, 10.0, 20.0, status="final")
        with tracing.study(KEY), tracing.span("deliver", target="pacs") as span:
            span.set_attributes(tracing.attributes(stored=2))
    spans = [*Seen.of(first), *Seen.of(second)]
    assert [one.name for one in spans] == ["read", "study", "deliver"]
    assert {one.trace_id for one in spans} == {KEY}
    assert [one.parent_id for one in spans] == [root_span_id(KEY), "", root_span_id(KEY)]
    assert spans[1].span_id == root_span_id(KEY)
    assert (spans[1].start_s, spans[1].end_s) == (10.0, 20.0)
    assert spans[2].attributes == {"overread.target": "pacs", "overread.stored": 2}


def test_spans_nest_and_outside_of_a_study_nothing_is_recorded() -> None:
    kept = InMemorySpanExporter()
    with recorded(kept):
        with tracing.span("lost"):
            assert tracing.metadata() == {}
        with tracing.study(KEY), tracing.span("escalate"):
            parent = tracing.metadata()
            with tracing.span("attempt"):
                pass
        with tracing.study("not a key"), tracing.span("lost"):
            pass
    attempt, escalate = Seen.of(kept)
    assert attempt.parent_id == escalate.span_id
    assert parent == {"traceparent": f"00-{KEY}-{escalate.span_id}-01"}
    assert tracing.metadata() == {}


def test_an_exception_is_noted_by_its_class_alone() -> None:
    """Its message may hold a path, or what a header says."""
    kept = InMemorySpanExporter()
    with recorded(kept), tracing.study(KEY), pytest.raises(FileNotFoundError), tracing.span("read"):
        raise FileNotFoundError(2, "gone", "/inbox/Doe_Jane")
    (span,) = kept.get_finished_spans()
    assert "Doe" not in span.to_json()
    assert span.attributes == {"error.type": "FileNotFoundError"}
    assert not span.status.is_ok


def test_the_log_names_study_and_trace() -> None:
    """Where traces are recorded, each line of a study has its trace, wherever it is written."""
    stream = io.StringIO()
    configure_logging("json", stream)
    log = structlog.get_logger()
    with recorded(InMemorySpanExporter()):
        with tracing.study(KEY):
            log.info("a")
        log.info("b", study_key=KEY)
        log.info("c", study_key=KEY, trace_id="of another caller")
        log.info("d")
    with tracing.study(KEY):
        log.info("e")
    lines = {line["event"]: line for line in map(json.loads, stream.getvalue().splitlines())}
    ids = {name: (line.get("study_key"), line.get("trace_id")) for name, line in lines.items()}
    other = (KEY, "of another caller")
    assert ids == {
        "a": (KEY, KEY),
        "b": (KEY, KEY),
        "c": other,
        "d": (None, None),
        "e": (KEY, None),
    }
    assert tracing.loggable("DOE^JANE") == {}


def test_a_file_has_spans_as_otlp_in_json(tmp_path: Path) -> None:
    """One batch a line, for the agent's user alone."""
    file = tmp_path / "traces.jsonl"
    with exporting("overread-edge", str(file)):
        with tracing.study(KEY), tracing.span("read", rois=3):
            pass
        tracing.record_study(KEY, 1.5, 2.5)
    assert file.stat().st_mode & 0o777 == 0o600
    (resource,) = json.loads(file.read_text().splitlines()[0])["resourceSpans"]
    names = {one["key"]: one["value"] for one in resource["resource"]["attributes"]}
    assert names["service.name"] == {"stringValue": "overread-edge"}
    read, root = spans_in(file)
    assert (read.name, read.trace_id, read.parent_id) == ("read", KEY, root.span_id)
    assert read.attributes == {"overread.rois": "3"}
    assert (root.start_s, root.end_s) == (1.5, 2.5)


def test_a_full_file_gives_way_to_a_new_one(tmp_path: Path) -> None:
    """So traces take twice the size at most."""
    file = tmp_path / "traces.jsonl"
    exporter = FileExporter(file, max_bytes=2000)
    for _ in range(20):
        with recorded(exporter), tracing.study(KEY), tracing.span("read"):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["traces.jsonl", "traces.jsonl.1"]
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    destination = str(tmp_path / "none" / "traces.jsonl")
    with pytest.raises(OSError, match=r"traces cannot be written: No such file.*traces.jsonl"):
        exporting("overread-edge", destination).__enter__()


def test_a_collector_that_never_answers_does_not_hold_up_the_end() -> None:
    """It takes the connection and is silent: the end comes before it lets go."""
    with socket.create_server(("127.0.0.1", 0)) as silent, capture_logs() as lines:
        host, port = silent.getsockname()
        with (
            exporting("overread-edge", f"http://{host}:{port}"),
            tracing.study(KEY),
            tracing.span("read"),
        ):
            pass
        assert tracing.root_of(KEY) is None
    assert [line["event"] for line in lines] == ["the last spans are lost, nobody takes them"]


def test_nobody_at_the_endpoint_is_a_line_in_the_log() -> None:
    with socket.socket() as unused, capture_logs() as lines:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with exporting("overread-edge", endpoint):
            for _ in range(3):
                with tracing.study(KEY), tracing.span("read"):
                    pass
    assert [line["event"] for line in lines][:1] == ["traces are lost"]


class Stuck(SpanExporter):
    """Takes no span before ``go`` is set."""

    def __init__(self) -> None:
        self.go, self.spans = threading.Event(), 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.go.wait(60)
        self.spans += len(spans)
        return SpanExportResult.SUCCESS


def test_spans_that_nobody_takes_are_bounded() -> None:
    """They wait in a queue of fixed length; beyond it the oldest are dropped."""
    stuck = Stuck()
    with recorded(stuck), tracing.study(KEY):
        for _ in range(3 * QUEUE_SPANS):
            with tracing.span("read"):
                pass
        stuck.go.set()
    assert 0 < stuck.spans <= QUEUE_SPANS + QUEUE_SPANS // 4
