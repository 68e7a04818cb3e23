"""No stream holds its place for longer than it should, and none takes more than it may."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import structlog

from protos import codec
from protos import overread_pb2 as pb
from protos.errors import OverreadError
from protos.messages import Priority, Refusal, Summary, Verdict
from tests.cloud.calling import MakeRoi, MakeStream, StartCloud, Until, read, refused, taken, typed
from tests.cloud.running import RunningCloud


def open_streams(cloud: RunningCloud) -> int:
    """Studies open now."""
    return int(cloud.count("overread_cloud_open_streams"))


def test_a_model_that_hangs_does_not_hold_a_study_beyond_its_deadline(
    start_cloud: StartCloud,
    make_roi: MakeRoi,
    make_stream: MakeStream,
    until: Until,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A caller without a timeout of its own is told, and its place is free."""
    monkeypatch.setattr("cloud.stream.LATE_S", 0.05)
    with start_cloud() as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        with pytest.raises(OverreadError, match="not all was answered") as caught, typed():
            list(stub.Read(iter(make_stream(make_roi(1), budget_s=1.0))))
        until(lambda: open_streams(cloud) == 0)
        assert taken(cloud) == 1
    assert caught.value.kind == "DeadlinePassed"


def test_a_header_without_an_roi_does_not_hold_a_place(
    start_cloud: StartCloud, make_stream: MakeStream
) -> None:
    """Whatever its budget, the first ROI has to come as soon as a header must."""
    (header,) = make_stream(budget_s=600.0, roi_count=1)
    never = threading.Event()

    def requests() -> Iterator[pb.ReadRequest]:
        yield header
        never.wait(20)

    with start_cloud(header_wait_s=0.1) as cloud, cloud.stub() as stub:
        with pytest.raises(OverreadError, match="no ROI within") as caught, typed():
            list(stub.Read(requests(), timeout=20))
        never.set()
    assert caught.value.kind == "InvalidRequest"


def test_who_has_sent_one_roi_has_its_whole_budget_for_the_next(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """The wait for the first ROI does not bound the wait for the second."""
    requests = make_stream(make_roi(1), make_roi(2))
    late = threading.Event()

    def slowly() -> Iterator[pb.ReadRequest]:
        yield from requests[:2]
        late.wait(0.8)
        yield requests[2]

    with start_cloud(header_wait_s=0.5) as cloud, cloud.stub() as stub:
        *_, last = stub.Read(slowly(), timeout=20)
    assert last.summary.answered == 2


def test_one_site_does_not_shut_out_the_others_nor_routine_work_stat(
    start_cloud: StartCloud, make_stream: MakeStream, until: Until
) -> None:
    """Of ten places five are a site's that holds them; the tenth is for stat."""
    outbox: queue.SimpleQueue[None] = queue.SimpleQueue()

    def held(**header: Any) -> Iterator[pb.ReadRequest]:
        yield from make_stream(roi_count=1, **header)
        outbox.get()

    with start_cloud(max_streams=10) as cloud, cloud.stub() as stub, ExitStack() as calls:
        calls.callback(lambda: [outbox.put(None) for _ in range(20)])

        def hold(site: str, **header: Any) -> Any:
            call = stub.Read(held(**header), timeout=20, metadata=(("overread-site", site),))
            calls.callback(call.cancel)
            return call

        def refused(site: str, words: str) -> None:
            with pytest.raises(OverreadError, match=words) as caught, typed():
                list(hold(site))
            assert caught.value.kind == "Overloaded"

        for count, site in enumerate(["north"] * 5 + ["south"] * 4, 1):
            hold(site)
            until(lambda count=count: open_streams(cloud) == count)
            if count == 6:
                refused("north", "6 studies of north are open, 5 may")
        refused("east", "are for stat")
        assert hold("north", priority=Priority.STAT).initial_metadata()


def test_a_checksum_of_another_length_is_not_repeated(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """A caller cannot have its own megabytes sent back, nor kept, by being refused."""
    header, roi = make_stream(make_roi(1))
    roi.roi.checksum = bytes(1_500_000)
    with start_cloud() as cloud:
        refusal, _ = read(cloud, [header, roi])
    assert isinstance(refusal, Refusal)
    assert refusal.error == "InvalidRequest"
    assert refusal.reason == "ROI 1: a checksum of 1500000 bytes, 16 are right"


@pytest.mark.parametrize("shape", [(2**32 - 1, 2**32 - 1, 0), (0, 0, 0), (1, 1, 2**32 - 1)])
def test_a_shape_that_cannot_be_is_refused_alone(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, shape: tuple[int, int, int]
) -> None:
    """It is its caller's fault, not one of the service, and the rest of the study is read."""
    header, wrong, sound = make_stream(make_roi(1), make_roi(2))
    wrong.roi.shape.z, wrong.roi.shape.y, wrong.roi.shape.x = shape
    wrong.roi.voxels = b""
    with start_cloud() as cloud:
        answers = {a.roi_id: a for a in read(cloud, [header, wrong, sound]) if hasattr(a, "roi_id")}
    refusal = answers[1]
    assert isinstance(refusal, Refusal)
    assert refusal.error == "InvalidRequest"
    assert isinstance(answers[2], Verdict)


@pytest.mark.parametrize(
    ("version", "kind"), [("9" * 3_000_000, "InvalidRequest"), ("\x00" * 128, "VersionMismatch")]
)
def test_a_version_is_neither_repeated_nor_logged_beyond_its_beginning(
    start_cloud: StartCloud, make_stream: MakeStream, version: str, kind: str
) -> None:
    """The class reaches the caller, and the log keeps a line of readable length."""
    with start_cloud() as cloud, structlog.testing.capture_logs() as logs:
        error = refused(cloud, make_stream(model_version=version))
    assert error.kind == kind
    assert len(error.reason) < 200
    assert max(len(str(log)) for log in logs) < 500


def test_an_answer_that_others_gave_up_is_a_refusal(
    start_cloud: StartCloud,
    make_roi: MakeRoi,
    make_stream: MakeStream,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An ROI whose batch ended without a word is told, not forgotten."""
    with start_cloud() as cloud, cloud.stub() as stub:
        submit = cloud.server._batcher.submit

        def given_up(*asked: Any) -> Any:
            answer = submit(*asked)
            answer.cancel()
            return answer

        monkeypatch.setattr(cloud.server._batcher, "submit", given_up)
        refusal, summary = map(codec.decode_response, stub.Read(iter(make_stream(make_roi(1)))))
    assert refusal == Refusal(1, "ModelFailed", "the batch ended without an answer")
    assert isinstance(summary, Summary)
    assert (summary.answered, summary.refused) == (0, 1)
