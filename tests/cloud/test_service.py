"""The service as its callers meet it: a real server on loopback, a blocking client.

No stream holds its place for longer than it should, and none takes more than it may.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
import structlog

from protos import codec
from protos import overread_pb2 as pb
from protos.errors import OverreadError
from protos.messages import Priority, Refusal, Summary, Verdict
from protos.metadata import load_of
from tests.cloud.calling import (
    MakeRoi,
    MakeStream,
    StartCloud,
    Until,
    in_queue,
    read,
    refused,
    taken,
    typed,
)
from tests.cloud.running import RunningCloud


def test_every_roi_gets_its_own_verdict(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """Twenty ROIs of one study come back with their own numbers, and a summary closes it."""
    with start_cloud() as cloud:
        *verdicts, summary = read(cloud, make_stream(*(make_roi(i, 10 * i) for i in range(20))))
    assert all(isinstance(v, Verdict) and v.model == "mean 2.1" for v in verdicts)
    by_id = {v.roi_id: v for v in verdicts if isinstance(v, Verdict)}
    assert sorted(by_id) == list(range(20))
    for i, verdict in by_id.items():
        assert verdict.probability == pytest.approx(10 * i / 255)
        assert verdict.diameter_mm == pytest.approx(i)
        assert verdict.queue_s >= 0.0
        assert verdict.compute_s >= 0.0
    assert isinstance(summary, Summary)
    assert (summary.answered, summary.refused) == (20, 0)
    assert summary.total_s > 0.0


def test_what_waits_is_read_in_batches(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, until: Until
) -> None:
    """ROIs that come while the model works are read batch_size, never more than a batch holds."""
    with start_cloud(max_batch=4, scheduling="fcfs") as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        call = stub.Read(iter(make_stream(*(make_roi(i) for i in range(12)))), timeout=20)
        until(lambda: in_queue(cloud) + taken(cloud) == 12)
        under_way = taken(cloud)
        cloud.reader.gate.set()
        assert len(list(call)) == 13
        waited = 12 - under_way
        full, rest = divmod(waited, 4)
        assert [len(b) for b in cloud.reader.batches[1:]] == [4] * full + [rest] * bool(rest)


def test_verdicts_come_before_the_study_is_sent_whole(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """The first verdict is there while the caller still holds the second ROI back."""
    header, first, second = make_stream(make_roi(1), make_roi(2))
    outbox: queue.SimpleQueue[pb.ReadRequest | None] = queue.SimpleQueue()
    with start_cloud() as cloud, cloud.stub() as stub:
        answers = stub.Read(iter(outbox.get, None), timeout=20)
        outbox.put(header)
        outbox.put(first)
        assert next(answers).verdict.roi_id == 1
        outbox.put(second)
        assert next(answers).verdict.roi_id == 2
        outbox.put(None)
        assert next(answers).summary.answered == 2


@pytest.mark.parametrize("values", [(), (51, 102)])
def test_a_caller_that_never_hangs_up_gets_its_summary(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, values: tuple[int, ...]
) -> None:
    """With all that was announced answered the study ends well, long before its budget."""
    outbox: queue.SimpleQueue[pb.ReadRequest | None] = queue.SimpleQueue()
    for request in make_stream(*(make_roi(i, value) for i, value in enumerate(values))):
        outbox.put(request)
    with start_cloud() as cloud, cloud.stub() as stub:
        *verdicts, last = stub.Read(iter(outbox.get, None), timeout=5)
        outbox.put(None)
    assert sorted(one.verdict.roi_id for one in verdicts) == list(range(len(values)))
    assert last.summary.answered == len(values)


def test_trailing_metadata_tells_the_load(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """Queue estimate and compute time are there after success and after failure."""
    with start_cloud() as cloud, cloud.stub() as stub:
        call = stub.Read(iter(make_stream(make_roi(1))), timeout=20)
        list(call)
        load = load_of(call.trailing_metadata())
        assert load is not None
        assert load.queue_s == 0.0
        assert load.compute_s >= 0.0
        failed = stub.Read(iter(make_stream(budget_s=-1.0)), timeout=20)
        with pytest.raises(grpc.RpcError):
            list(failed)
        assert load_of(failed.trailing_metadata()) is not None


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ({"budget_s": 0.0}, "InvalidRequest"),
        ({"budget_s": -1.0}, "InvalidRequest"),
        ({"budget_s": float("nan")}, "InvalidRequest"),
        ({"budget_s": float("inf")}, "InvalidRequest"),
        ({"study_key": ""}, "InvalidRequest"),
        ({"study_key": "k" * 129}, "InvalidRequest"),
        ({"roi_count": 65}, "TooLarge"),
        ({"model_version": "1.0"}, "VersionMismatch"),
    ],
)
def test_a_header_that_cannot_be_is_refused(
    start_cloud: StartCloud, make_stream: MakeStream, header: dict[str, Any], kind: str
) -> None:
    """A wrong header ends the stream with the class that says whose fault it is."""
    with start_cloud() as cloud:
        assert refused(cloud, make_stream(**header)).kind == kind


@pytest.mark.parametrize("version", ["", "2.1", "2.9"])
def test_a_compatible_version_is_served(
    start_cloud: StartCloud, make_stream: MakeStream, version: str
) -> None:
    """Any version, the same, or the same major one is served; a study without ROIs is one too."""
    with start_cloud() as cloud:
        (summary,) = read(cloud, make_stream(model_version=version))
    assert isinstance(summary, Summary)
    assert (summary.answered, summary.refused) == (0, 0)


def test_the_header_comes_first_and_once(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """A stream without header, with two, with an empty message or with nothing is refused."""
    header, roi = make_stream(make_roi(1))
    with start_cloud() as cloud:
        for requests in ([roi], [header, header], [header, pb.ReadRequest()], []):
            assert refused(cloud, requests).kind == "InvalidRequest"


def test_a_damaged_roi_is_refused_and_may_be_sent_again(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """Voxels that changed on their way are told; the same ROI sent whole gets its verdict."""
    header, whole = make_stream(make_roi(1))
    damaged = pb.ReadRequest()
    damaged.CopyFrom(whole)
    damaged.roi.voxels = b"\x00" + whole.roi.voxels[1:]
    with start_cloud() as cloud:
        refusal, verdict, summary = read(cloud, [header, damaged, whole])
    assert isinstance(refusal, Refusal)
    assert refusal.error == "ChecksumMismatch"
    assert isinstance(verdict, Verdict)
    assert isinstance(summary, Summary)
    assert (summary.answered, summary.refused) == (1, 0)


def test_a_message_beyond_the_limit_is_too_large(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """What gRPC itself refuses is met as the same class, and the service goes on."""
    header, roi = make_stream(make_roi(1))
    huge = codec.encode_roi(make_roi(1))
    huge.roi.voxels = bytes(10_000)
    with start_cloud(max_message_bytes=8192) as cloud:
        assert refused(cloud, [header, huge]).kind == "TooLarge"
        assert isinstance(read(cloud, [header, roi])[0], Verdict)


def test_a_failed_batch_is_refused_and_the_service_lives(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """What the model throws reaches the caller as ModelFailed, for that batch alone."""
    with start_cloud(max_batch=1) as cloud:
        answers = {
            a.roi_id: a
            for a in read(cloud, make_stream(make_roi(1, 255), make_roi(2)))
            if not isinstance(a, Summary)
        }
        assert isinstance(read(cloud, make_stream(make_roi(3)))[0], Verdict)
    assert answers[1] == Refusal(1, "ModelFailed", "mean: ValueError: all 255")
    assert isinstance(answers[2], Verdict)


def test_too_many_studies_are_refused_as_overloaded(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, until: Until
) -> None:
    """The limit of open studies is told at once, and holds no longer than they are open."""
    with start_cloud(max_streams=1) as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        call = stub.Read(iter(make_stream(make_roi(1))), timeout=20)
        until(lambda: cloud.count("overread_cloud_open_streams") == 1)
        assert refused(cloud, make_stream(make_roi(1), study_key="k2")).kind == "Overloaded"
        cloud.reader.gate.set()
        assert len(list(call)) == 2
        until(lambda: cloud.count("overread_cloud_open_streams") == 0)
        assert len(read(cloud, make_stream(make_roi(1), study_key="k2"))) == 2


def test_a_stream_that_says_nothing_is_closed(start_cloud: StartCloud) -> None:
    """A caller that connects and sends no header does not hold a place."""
    never = threading.Event()
    with start_cloud(header_timeout_s=0.05) as cloud, cloud.stub() as stub:
        with pytest.raises(OverreadError, match="no header arrived within"), typed():
            list(stub.Read(iter(lambda: never.wait(20), True), timeout=20))
        never.set()


def test_a_study_never_sent_whole_ends_with_its_budget(
    start_cloud: StartCloud, make_stream: MakeStream
) -> None:
    """A caller that announces an ROI and never sends it does not hold a place for ever."""
    (header,) = make_stream(budget_s=0.3, roi_count=1)
    never = threading.Event()

    def requests() -> Iterator[pb.ReadRequest]:
        yield header
        never.wait(20)

    with start_cloud() as cloud, cloud.stub() as stub:
        with pytest.raises(OverreadError, match="before the last ROI arrived") as caught, typed():
            list(stub.Read(requests(), timeout=20))
        never.set()
    assert caught.value.kind == "DeadlinePassed"


def test_describe_says_what_is_served(start_cloud: StartCloud) -> None:
    """Models, engine, limits and the shape of ROI are there before a study is sent."""
    with start_cloud(max_rois=5) as cloud, cloud.stub() as stub:
        description = codec.decode_description(stub.Describe(pb.DescribeRequest(), timeout=20))
    assert description.models == {"mean": "2.1"}
    assert description.engine == "numpy"
    assert description.max_rois == 5
    assert description.roi_shape == (8, 8, 8)


def test_a_fault_of_our_own_ends_its_study_and_is_told(
    start_cloud: StartCloud,
    make_roi: MakeRoi,
    make_stream: MakeStream,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller meets ServiceFault, the operator a count and a traceback; the service goes on."""
    requests = make_stream(make_roi(1))
    with start_cloud() as cloud, structlog.testing.capture_logs() as logs:
        with monkeypatch.context() as patch:
            patch.setattr("cloud.service.check_header", lambda *_: 1 / 0)
            assert refused(cloud, requests).kind == "ServiceFault"
        assert cloud.count("overread_cloud_streams_total", end="ZeroDivisionError") == 1
        assert isinstance(read(cloud, requests)[0], Verdict)
    (told,) = [log for log in logs if log["event"] == "internal error"]
    assert told["exc_info"]


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
    monkeypatch.setattr("cloud.stream.CLOSE_AFTER_S", 0.05)
    with start_cloud() as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        with pytest.raises(OverreadError, match="not all ROIs were answered") as caught, typed():
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

    with start_cloud(header_timeout_s=0.1) as cloud, cloud.stub() as stub:
        with pytest.raises(OverreadError, match="no ROI arrived within") as caught, typed():
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

    with start_cloud(header_timeout_s=0.5) as cloud, cloud.stub() as stub:
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
                refused("north", "north has 6 open streams; .* is 5")
        refused("east", "are reserved for stat")
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
    assert refusal.reason == "ROI 1: checksum of 1500000 bytes, expected 16"


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
