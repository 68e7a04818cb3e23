"""The spans of a study in a cloud that serves."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from tests.cloud.running import make_roi, make_stream, run_cloud, typed, unfinished, until
from tests.traces import Seen, recorded

KEY = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
PARENT = f"00-{KEY}-{CALLER}-01"


class Kept:
    def __init__(self, provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
        self._provider, self._exporter = provider, exporter

    def spans(self) -> list[Seen]:
        """The spans, once the thread that hands them over has done so."""
        self._provider.force_flush()
        return Seen.of(self._exporter)


@pytest.fixture
def kept() -> Iterator[Kept]:
    exporter = InMemorySpanExporter()
    with recorded(exporter) as provider:
        yield Kept(provider, exporter)


def test_a_call_continues_the_trace_of_its_caller(kept: Kept) -> None:
    requests = make_stream(*(make_roi(n, 51 + n) for n in range(3)), study_key=KEY)
    with capture_logs() as lines, run_cloud() as cloud, cloud.stub() as stub:
        list(stub.Read(iter(requests), timeout=20, metadata=(("traceparent", PARENT),)))
        until(lambda: any(line["event"] == "study read" for line in lines))
    ids = {"study_key": KEY, "trace_id": KEY}
    (line,) = [line for line in lines if line["event"] == "study read"]
    assert ids.items() <= line.items()
    spans = kept.spans()
    (whole,) = [one for one in spans if one.name == "second reading"]
    assert (whole.trace_id, whole.parent_id) == (KEY, CALLER)
    assert whole.attributes == {
        "overread.announced": 3,
        "overread.priority": "routine",
        "overread.answered": 3,
        "overread.refused": 0,
        "overread.outcome": "complete",
    }
    parts = [one for one in spans if one is not whole]
    assert {one.parent_id for one in parts} == {whole.span_id}
    assert {one.trace_id for one in parts} == {KEY}
    names = [one.name for one in sorted(parts, key=lambda one: (one.start_s, one.name))]
    assert names[:3] == ["receive", "queue", "batch"]
    assert set(names[3:]) - {"batch"} == {"answer"}  # the first one before the last batch, perhaps
    batches = [one for one in parts if one.name == "batch"]
    assert sum(one.attributes["overread.rois"] for one in batches) == 3
    assert all(whole.start_s - 1e-3 < one.start_s <= one.end_s for one in parts)


def test_a_study_that_fails_or_is_cancelled_says_so_by_a_word(kept: Kept) -> None:
    """A key that is not random, as another caller may send, is in no span and in no line.

    All lines of a study have its site and its key, or that the key is not logged.
    """
    metadata = (("traceparent", PARENT),)
    with capture_logs() as lines, run_cloud() as cloud, cloud.stub() as stub:
        failing = make_stream(roi_count=9999, study_key="DOE^JANE")
        with pytest.raises(Exception, match=r"9999 ROIs announced"), typed():
            list(stub.Read(iter(failing), timeout=20, metadata=metadata))
        with unfinished(*make_stream(roi_count=2)) as sent:
            call = stub.Read(sent, timeout=20, metadata=metadata)
            assert next(call).HasField("accepted")  # so its header has come
            call.cancel()
            until(lambda: cloud.open_streams == 0)
    assert [one.attributes["overread.outcome"] for one in kept.spans()] == ["TooLarge", "cancelled"]
    said = [line for line in lines if line["event"].startswith("study")]
    assert [line["event"] for line in said] == ["study failed", "study cancelled"]
    assert [line["study_key"] for line in said] == ["not random"] * 2
    assert all((line["trace_id"], line["site"]) == (KEY, "127.0.0.1") for line in said)
    assert "DOE" not in str((lines, [one.attributes for one in kept.spans()]))


def test_an_untraced_cloud_logs_the_study_alone() -> None:
    with capture_logs() as lines, run_cloud() as cloud, cloud.stub() as stub:
        list(stub.Read(iter(make_stream(make_roi(1), study_key=KEY)), timeout=20))
    (line,) = [line for line in lines if line["event"].startswith("study")]
    assert line == {
        "event": "study read",
        "log_level": "info",
        "study_key": KEY,
        "site": "127.0.0.1",
        "answered": 1,
        "refused": 0,
    }
