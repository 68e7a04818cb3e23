"""The service as its callers meet it: a real server on loopback, a blocking client."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from imaging.volume import UInt8Array
from models.runtime.readings import Readings
from protos import codec
from protos import overread_pb2 as pb
from protos.errors import OverreadError, from_status
from protos.load import load_of
from protos.messages import Refusal, Roi, Summary, Verdict

StartCloud = Callable[..., Any]
MakeRoi = Callable[..., Roi]
MakeStream = Callable[..., list[pb.ReadRequest]]
Until = Callable[[Callable[[], bool]], None]


def read(cloud: Any, requests: list[pb.ReadRequest]) -> list[Verdict | Refusal | Summary]:
    """All that a study's stream gives; raises what the edge would raise."""
    with cloud.stub() as stub, typed():
        return [codec.decode_response(r) for r in stub.Read(iter(requests), timeout=20)]


@contextlib.contextmanager
def typed() -> Iterator[None]:
    """Raises a status as its error, as the edge does."""
    try:
        yield
    except grpc.RpcError as caught:
        error: Any = caught  # a call's error is its own status
        raise from_status(error.code(), error.details(), error.trailing_metadata()) from None


def taken(cloud: Any) -> int:
    """How many ROIs the model was given so far."""
    return sum(map(len, cloud.reader.batches))


def in_queue(cloud: Any) -> int:
    """How many ROIs wait for the model."""
    return int(cloud.count("overread_cloud_waiting_rois"))


def refused(cloud: Any, requests: list[pb.ReadRequest]) -> OverreadError:
    """The error that ends a study's stream."""
    with pytest.raises(OverreadError) as caught:
        read(cloud, requests)
    return caught.value


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
    """ROIs that come while the model works are read together, never more than a batch holds."""
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


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"window_hu": (-160.0, 240.0)}, "InvalidRequest"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "InvalidRequest"),
        ({"spacing_mm": (1.0, float("nan"), 1.0)}, "InvalidRequest"),
        ({"edge_score": 1.5}, "InvalidRequest"),
        ({"edge_score": float("nan")}, "InvalidRequest"),
    ],
)
def test_an_roi_that_cannot_be_read_is_refused_alone(
    start_cloud: StartCloud,
    make_roi: MakeRoi,
    make_stream: MakeStream,
    fields: dict[str, Any],
    kind: str,
) -> None:
    """One wrong ROI gets a refusal; the rest of the study gets its verdicts."""
    with start_cloud() as cloud:
        requests = make_stream(make_roi(1, **fields), make_roi(2))
        answers = {a.roi_id: a for a in read(cloud, requests) if not isinstance(a, Summary)}
    refusal = answers[1]
    assert isinstance(refusal, Refusal)
    assert refusal.error == kind
    assert isinstance(answers[2], Verdict)


def test_an_roi_of_another_shape_or_size_is_refused(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """The reason names the shape that came and the one that is read."""
    small, large = make_roi(1), make_roi(2)
    small = Roi(1, small.voxels[:1], small.spacing_mm, small.window_hu, 0.5)
    large = Roi(2, large.voxels.repeat(2, axis=0), large.spacing_mm, large.window_hu, 0.5)
    with start_cloud(max_roi_voxels=512) as cloud:
        answers = {a.roi_id: a for a in read(cloud, make_stream(small, large))[:2]}  # type: ignore[union-attr] # the summary is third
    assert answers[1].error == "InvalidRequest"  # type: ignore[union-attr] # compared below
    assert "(1, 8, 8)" in answers[1].reason  # type: ignore[union-attr] # a refusal
    assert answers[2].error == "TooLarge"  # type: ignore[union-attr] # a refusal


def test_a_smaller_roi_is_mirrored_and_its_mask_cut_back(
    start_cloud: StartCloud, mean_reader: type, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """The model reads its own shape, and the mask that comes back has the shape that was sent."""

    class Outliner(mean_reader):  # type: ignore[misc,valid-type] # the fixture gives a class
        def read(self, batch: UInt8Array) -> Readings:
            assert batch.shape[1:] == (8, 8, 8)
            return replace(super().read(batch), mask=batch == 99)

    voxels = np.full((4, 8, 6), 51, np.uint8)
    voxels[1, 2, 3] = 99
    with start_cloud(Outliner()) as cloud:
        verdict, _ = read(cloud, make_stream(make_roi(1, voxels=voxels)))
    assert isinstance(verdict, Verdict)
    np.testing.assert_array_equal(codec.unpack_mask(verdict.mask, (4, 8, 6)), voxels == 99)


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


def test_an_roi_sent_twice_is_read_and_answered_once(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """A repeat within a stream changes nothing."""
    header, roi = make_stream(make_roi(1))
    with start_cloud() as cloud:
        verdict, summary = read(cloud, [header, roi, roi])
        assert taken(cloud) == 1
    assert isinstance(verdict, Verdict)
    assert isinstance(summary, Summary)
    assert summary.answered == 1


def test_a_study_sent_again_costs_nothing(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """After a lost connection the same study gets the same verdicts without being read again."""
    requests = make_stream(make_roi(1), make_roi(2, 102))
    with start_cloud() as cloud:
        first = {a.roi_id: a for a in read(cloud, requests) if isinstance(a, Verdict)}
        again = {a.roi_id: a for a in read(cloud, requests) if isinstance(a, Verdict)}
        assert taken(cloud) == 2
        other = read(cloud, make_stream(make_roi(1), study_key="k2"))
        assert taken(cloud) == 3
    assert {i: v.probability for i, v in first.items()} == {1: 0.2, 2: 0.4}
    assert {i: v.probability for i, v in again.items()} == {1: 0.2, 2: 0.4}
    assert all(v.queue_s == v.compute_s == 0.0 for v in again.values())
    assert isinstance(other[0], Verdict)


def test_more_rois_than_announced_end_the_stream(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """The header's count is a promise, and an ROI's number stands for one content."""
    with start_cloud() as cloud:
        more = make_stream(make_roi(1), make_roi(2), roi_count=1)
        assert refused(cloud, more).kind == "InvalidRequest"
        other = make_stream(make_roi(1), make_roi(1, 200))
        assert refused(cloud, other).kind == "InvalidRequest"
        header, roi = make_stream(make_roi(1))
        assert refused(cloud, [header, roi, roi, roi]).kind == "TooLarge"


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
    with start_cloud(header_wait_s=0.05) as cloud, cloud.stub() as stub:
        with pytest.raises(OverreadError, match="no header within"), typed():
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
        with pytest.raises(OverreadError, match="time ran out") as caught, typed():
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
