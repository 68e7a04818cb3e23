"""One trace of a study: from its first image by C-STORE, through the cloud, to a Storage SCP."""

import json
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydicom import dcmread
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Comprehensive3DSRStorage, Verification
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.escalation.client import open_second_reader
from edge.settings.core import load_settings
from evaluation.world import free_ports, listens
from process import tracing
from process.http import Listener, serving
from process.otel import exporting
from process.tracing import root_span_id
from protos.deadline import Deadline
from tests.cloud.running import make_roi, run_cloud
from tests.dicom_peers import Pacs
from tests.edge.dicom_in.senders import DICOM, Port
from tests.test_end_to_end import LIMIT_S, Home, Study, chest, home, wait_for
from tests.traces import Seen, spans_in

# the chest and the home of the processes are those of the end-to-end tests
__all__ = ["chest", "home"]

STAGES = ["read", "preprocess", "screen", "decide", "escalate", "merge", "draw", "report"]
ORDER = ["receive", "inbox", "wait", *STAGES, "make objects", "deliver"]


@pytest.mark.long
# pynetdicom drops the socket of a connection that failed without closing it
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_every_span_of_a_study_is_in_one_trace_also_after_a_kill(
    home: Home, chest: Study, tmp_path: Path
) -> None:
    """The agent is killed after the report, before its results are delivered, and started again."""
    at_edge, in_cloud = tmp_path / "edge.jsonl", tmp_path / "cloud.jsonl"
    (port, pacs_port) = free_ports(2)
    cloud_config = tmp_path / "cloud.toml"
    cloud_config.write_text(f'traces = "{in_cloud}"\naddress = "127.0.0.1:0"\n')
    ready = tmp_path / "ready"
    serve = ("cloud", "serve", "--config", cloud_config, "--ready-file", ready)
    with home.running(*serve) as cloud:
        wait_for(ready.is_file, cloud)
        run = ("edge", "run", "--config", config(tmp_path, ready.read_text(), port, pacs_port))
        with home.running(*run) as agent:
            wait_for(lambda: listens(port), agent)
            images = [dcmread(path) for path in sorted(chest.folder.glob("*.dcm"))]
            assert set(DICOM.send(Port(f"127.0.0.1:{port}"), *images)) == {0}
            wait_for(lambda: "study" in names(at_edge), agent)
            agent.kill()
        contexts = [build_context(Comprehensive3DSRStorage), build_context(Verification)]
        pacs = Pacs(pacs_port)
        with pacs.running(contexts=contexts), home.running(*run) as agent:
            wait_for(lambda: bool(pacs.received), agent)
            agent.terminate()
            assert agent.wait(LIMIT_S) == 0
        cloud.terminate()
        assert cloud.wait(LIMIT_S) == 0
    (report,) = (tmp_path / "outbox").glob("*/report.json")
    values = json.loads(report.read_text())
    key, edge, above = values["study_key"], spans_in(at_edge), spans_in(in_cloud)
    assert {one.trace_id for one in (*edge, *above)} == {key}
    root, escalate = of(edge, "study"), of(edge, "escalate")
    assert (root.span_id, root.parent_id) == (root_span_id(key), "")
    assert root.attributes["overread.second_reading"] == "complete"
    assert {one.parent_id for one in edge if one is not root} == {root.span_id}
    # the cloud's spans are below the edge's escalation
    whole = of(above, "second reading")
    assert whole.parent_id == escalate.span_id
    assert {one.parent_id for one in above if one is not whole} == {whole.span_id}
    assert {"receive", "queue", "batch", "answer"} == {one.name for one in above} - {whole.name}
    assert whole.attributes["overread.answered"] == escalate.attributes["overread.verdicts"]
    assert int(escalate.attributes["overread.rois"]) > 0
    assert escalate.start_s <= whole.start_s <= whole.end_s <= escalate.end_s + 1e-3
    # in the order of the work; the first attempt to deliver failed, and the kill ended the others
    last = [max((one for one in edge if one.name == name), key=lambda one: one.start_s)
            for name in ORDER]  # fmt: skip
    for before, after in pairwise(last):
        assert before.start_s <= before.end_s <= after.start_s + 1e-3, (before, after)
    assert of(edge, "receive").attributes["overread.images"] == str(len(images))
    assert root.start_s == of(edge, "receive").start_s
    assert last[-1].attributes["overread.stored"] == "1"
    # nothing of the patient, no path and no UID
    text = at_edge.read_text() + in_cloud.read_text()
    uids = {str(one[tag].value) for one in images for tag in ("SOPInstanceUID", "PatientID",
            "StudyInstanceUID", "SeriesInstanceUID")}  # fmt: skip
    words = {*uids, str(tmp_path), report.parent.name} - {""}
    assert [word for word in words if word in text] == []


def test_edge_and_cloud_send_one_trace_to_a_collector() -> None:
    """By OTLP over HTTP; the collector here is a server that decodes the protobuf messages."""
    key, requests = "4bf92f3577b34da6a3ce929d0e0e4736", list[ExportTraceServiceRequest]()

    async def collect(request: Request) -> Response:
        requests.append(ExportTraceServiceRequest.FromString(await request.body()))
        return Response()

    collector = Starlette(routes=[Route("/v1/traces", collect, methods=["POST"])])
    with (
        run_cloud() as cloud,
        serving(collector, Listener("127.0.0.1:0")) as bound,
        ExitStack() as held,
    ):
        settings = load_settings(cloud__address=cloud.address)
        second = open_second_reader(settings, held, time.monotonic)
        held.enter_context(exporting("overread", bound.url))
        with tracing.study(key), tracing.span("escalate"):
            result = second.read_rois([make_roi(1)], Deadline.after(20.0), key)
    assert len(result.verdicts) == 1
    spans = {
        span.name: span
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }
    assert {one.trace_id.hex() for one in spans.values()} == {key}
    assert spans["escalate"].parent_span_id.hex() == root_span_id(key)
    assert spans["second reading"].parent_span_id == spans["escalate"].span_id


def config(root: Path, cloud: str, port: int, pacs_port: int) -> Path:
    """The settings of an agent that receives, and delivers the structured report."""
    folders = [f'{name} = "{root / name}"' for name in ("inbox", "outbox", "state_dir")]
    lines = [
        *folders,
        f'cloud.address = "{cloud}"',
        "deadline_s = 60.0",
        "quiet_s = 0.5",
        f'receive.dicom.address = "127.0.0.1:{port}"',
        "receive.min_free_mb = 1",
        f'traces = "{root / "edge.jsonl"}"',
        "[[targets]]",
        'name = "pacs"\nkind = "dicom"\ncalled_ae = "PACS"\nobjects = ["sr"]',
        f'address = "127.0.0.1:{pacs_port}"',
    ]
    file = root / "edge.toml"
    file.write_text("\n".join(lines))
    return file


def names(file: Path) -> set[str]:
    return {one.name for one in spans_in(file)}


def of(spans: list[Seen], name: str) -> Seen:
    (found,) = [one for one in spans if one.name == name]
    return found
