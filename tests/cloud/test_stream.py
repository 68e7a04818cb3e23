"""The ROIs of a study: read, refused, sent again, waiting, and counted before they are sent."""

import queue
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from imaging.volume import UInt8Array
from models.runtime.second_reader import Readings
from protos import codec
from protos import overread_pb2 as pb
from protos.errors import DeadlineUnmeetable, Overloaded
from protos.messages import Priority, Refusal, Verdict
from tests.cloud.running import (
    MeanReader,
    RunningCloud,
    accepted_of,
    answers,
    make_roi,
    make_stream,
    outcomes_by_id,
    read,
    refused,
    run_cloud,
    until,
)

Outbox = queue.SimpleQueue[pb.ReadRequest | None]


def test_every_roi_gets_its_own_verdict(cloud: RunningCloud) -> None:
    *verdicts, summary = read(cloud, make_stream(*(make_roi(i, 10 * i) for i in range(20))))
    by_id = {v.roi_id: v for v in verdicts if isinstance(v, Verdict)}
    assert sorted(by_id) == list(range(20))
    for i, verdict in by_id.items():
        assert verdict.model == "mean 2.1"
        assert verdict.probability == pytest.approx(10 * i / 255)
        assert verdict.diameter_mm == pytest.approx(i)
        assert verdict.queue_s >= 0.0
        assert verdict.compute_s >= 0.0
    assert (summary.answered, summary.refused) == (20, 0)
    assert summary.total_s > 0.0


@pytest.mark.parametrize(
    ("fields", "kind", "word"),
    [
        ({"window_hu": (-160.0, 240.0)}, "InvalidRequest", "window_hu"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "InvalidRequest", "spacing_mm"),
        ({"spacing_mm": (1.0, float("nan"), 1.0)}, "InvalidRequest", "spacing_mm"),
        ({"edge_score": 1.5}, "InvalidRequest", "edge_score"),
        ({"edge_score": float("nan")}, "InvalidRequest", "edge_score"),
        ({"voxels": np.zeros((1, 8, 8), np.uint8)}, "InvalidRequest", "(1, 8, 8)"),
        ({"voxels": np.zeros((4, 8, 9), np.uint8)}, "InvalidRequest", "(4, 8, 9)"),
        ({"voxels": np.zeros((16, 8, 8), np.uint8)}, "TooLarge", "1024 voxels"),
    ],
)
def test_an_invalid_roi_is_refused_alone(
    cloud: RunningCloud, fields: dict[str, Any], kind: str, word: str
) -> None:
    """One wrong ROI gets a refusal that names what is wrong; the smallest of all gets a verdict."""
    sound = make_roi(2, voxels=np.zeros((2, 8, 8), np.uint8))
    outcomes = outcomes_by_id(read(cloud, make_stream(make_roi(1, **fields), sound)))
    assert outcomes[1].error == kind
    assert word in outcomes[1].reason
    field = "roi.shape" if kind == "InvalidRequest" and "(" in word else f"roi.{word}"
    assert outcomes[1].field == (field if kind == "InvalidRequest" else "roi.voxels")
    assert isinstance(outcomes[2], Verdict)


def test_a_smaller_roi_is_mirrored_and_its_mask_cut_back() -> None:

    class Outliner(MeanReader):
        def read(self, batch: UInt8Array) -> Readings:
            assert batch.shape[1:] == (8, 8, 8)
            return replace(super().read(batch), mask=batch == 99)

    voxels = np.full((4, 8, 6), 51, np.uint8)
    voxels[1, 2, 3] = 99
    with run_cloud(Outliner()) as cloud:
        verdict, _ = read(cloud, make_stream(make_roi(1, voxels=voxels)))
    assert isinstance(verdict, Verdict)
    np.testing.assert_array_equal(codec.unpack_mask(verdict.mask, (4, 8, 6)), voxels == 99)


@pytest.mark.parametrize("announced", [0, 1])
def test_more_rois_than_announced_end_the_stream(cloud: RunningCloud, announced: int) -> None:
    """Also where all that were announced are answered, and where none was."""
    rois = [make_roi(number) for number in range(announced + 1)]
    error = refused(cloud, make_stream(*rois, roi_count=announced))
    assert (error.kind, error.field, error.limit) == ("InvalidRequest", "roi.roi_id", announced)


def test_an_roi_is_sent_with_one_content_and_twice_at_most(cloud: RunningCloud) -> None:
    other = refused(cloud, make_stream(make_roi(1), make_roi(1, 200), roi_count=1))
    assert (other.kind, other.field) == ("InvalidRequest", "roi.checksum")
    header, roi = make_stream(make_roi(1))
    often = refused(cloud, [header, roi, roi, roi])
    assert (often.kind, often.limit) == ("InvalidRequest", 2.0)


def test_a_caller_that_sends_fewer_ends_its_study_with_them(cloud: RunningCloud) -> None:
    """Announced ROIs that are never sent are neither answered nor refused."""
    *verdicts, summary = read(cloud, make_stream(make_roi(1), make_roi(2), roi_count=9))
    assert sorted(v.roi_id for v in verdicts if isinstance(v, Verdict)) == [1, 2]
    assert (summary.answered, summary.refused) == (2, 0)


def test_a_refused_roi_that_comes_again_is_not_counted_as_announced_twice() -> None:
    """A repeated ROI is not taken off the count of another stream."""
    outbox = Outbox()
    with run_cloud() as cloud, cloud.stub() as stub:
        batcher = cloud.server.batcher
        batcher.announced_rois += 5
        call = stub.Read(iter(outbox.get, None), timeout=20)
        header, wrong = make_stream(make_roi(1, edge_score=1.5))
        for request in (header, wrong, wrong):
            outbox.put(request)
        assert accepted_of(call) == 1
        assert [next(call).refusal.roi_id for _ in range(2)] == [1, 1]
        assert batcher.announced_rois == 5
        outbox.put(None)
        assert next(call).summary.refused == 1
        until(lambda: batcher.announced_rois == 5)


def test_what_waits_is_read_by_priority_and_never_if_it_is_late_or_unwanted() -> None:
    """Behind a batch that is held: a cancelled study, one whose time passes, routine and stat."""
    passed_s = [0.0]
    with (
        run_cloud(max_batch=1, clock=lambda: time.monotonic() + passed_s[0]) as cloud,
        cloud.stub() as stub,
    ):

        def send(value: int, budget_s: float = 300.0, **header: Any) -> Any:
            before = cloud.taken + cloud.queued
            requests = make_stream(make_roi(1, value), budget_s=budget_s, **header)
            call = stub.Read(iter(requests), timeout=300)
            until(lambda: cloud.taken + cloud.queued == before + 1)
            return call

        cloud.reader.gate.clear()
        calls = [send(10), send(20), send(30, priority=Priority.STAT)]
        late, unwanted = send(40, budget_s=60.0), send(50)
        unwanted.cancel()
        until(lambda: cloud.queued == 3)
        passed_s[0] = 61.0  # the deadline of a minute has passed
        cloud.reader.gate.set()
        assert all(len(list(answers(call))) == 2 for call in calls)
        refusal, _ = map(codec.decode_response, answers(late))
        assert refusal.error == "DeadlinePassed"
        assert cloud.reader.batches == [[10.0], [30.0], [20.0]]


Admission = Callable[[RunningCloud, Any], list[int]]


@pytest.fixture
def admission(monkeypatch: pytest.MonkeyPatch) -> Admission:
    """Sets what admission control returns or raises; returns the ROI counts of its calls."""

    def set_(cloud: RunningCloud, answer: Any) -> list[int]:
        counts: list[int] = []

        def admit(newcomers: Any) -> int:
            counts.append(len(newcomers))
            if isinstance(answer, Exception):
                raise answer
            return int(answer)

        monkeypatch.setattr(cloud.server.batcher.queue, "admit", admit)
        return counts

    return set_


def accepted(cloud: RunningCloud, requests: list[pb.ReadRequest]) -> int:
    """What the first response of a study's stream says."""
    with cloud.stub() as stub:
        call = stub.Read(iter(requests), timeout=20)
        count = accepted_of(call)
        list(call)
        return count


def test_the_header_is_checked_for_all_rois_that_it_announces(admission: Admission) -> None:
    """The caller knows how many of its ROIs can be answered before it has sent the first."""
    outbox = Outbox()
    header, first, *_ = make_stream(*map(make_roi, range(5)))
    with run_cloud() as cloud, cloud.stub() as stub:
        counts = admission(cloud, 3)
        outbox.put(header)
        call = stub.Read(iter(outbox.get, None), timeout=20)
        assert call.initial_metadata() is not None
        assert accepted_of(call) == 3
        assert counts == [5]
        outbox.put(first)
        assert next(call).verdict.roi_id == 0
        outbox.put(None)
        assert next(call).summary.answered == 1


def test_a_study_without_rois_has_none_accepted(admission: Admission) -> None:
    """Admission control is not called for it."""
    with run_cloud() as cloud:
        counts = admission(cloud, Overloaded("full"))
        assert accepted(cloud, make_stream()) == 0
        assert counts == []


def test_a_rejected_roi_costs_neither_checksum_nor_padding(
    admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size is checked before load, and both before the voxels are touched."""
    large = make_roi(2, voxels=np.zeros((16, 8, 8), np.uint8))
    header, *rois = make_stream(make_roi(1), large)
    for roi in rois:
        roi.roi.checksum = bytes(16)
    for cost in ("verify", "pad"):
        monkeypatch.setattr(f"cloud.stream.{cost}", lambda *_: pytest.fail("it was paid for"))
    outbox = Outbox()
    with run_cloud() as cloud, cloud.stub() as stub:
        admission(cloud, 2)
        call = stub.Read(iter(outbox.get, None), timeout=20)
        outbox.put(header)
        accepted_of(call)
        queue = cloud.server.batcher.queue
        queue.release([entry[3] for entry in queue._queues[False]])  # as if they had lapsed
        admission(cloud, DeadlineUnmeetable("no time", 2.5))
        for request in (*rois, None):
            outbox.put(request)
        *outcomes, summary = map(codec.decode_response, call)
    by_id = outcomes_by_id(outcomes)
    assert by_id[1] == Refusal(1, "DeadlineUnmeetable", "no time", 2.5)
    assert by_id[2].error == "TooLarge"
    assert (summary.answered, summary.refused) == (0, 2)


def test_a_remembered_verdict_is_for_its_site_and_for_who_has_the_voxels() -> None:
    """Another site's study of the same key is read; a known checksum alone is not enough."""
    request = make_stream(make_roi(1))
    stolen = pb.ReadRequest.FromString(request[1].SerializeToString())
    stolen.roi.voxels = bytes(len(stolen.roi.voxels))
    with run_cloud(trusted_proxies=("*",)) as cloud, cloud.stub() as stub:
        read(cloud, request)
        list(stub.Read(iter(request), timeout=20, metadata=(("overread-site", "other"),)))
        assert cloud.taken == 2
        (refusal,) = outcomes_by_id(read(cloud, [request[0], stolen])).values()
        assert refusal.error == "ChecksumMismatch"
        assert cloud.count("rois_total", outcome="cached", priority="routine") == 0


def test_a_study_sent_again_is_answered_whatever_the_load(admission: Admission) -> None:
    """Cached verdicts are sent although nothing is admitted; new ROIs are refused."""
    known, new, key = make_roi(1), make_roi(2, 102), {"study_key": "sent again"}
    with run_cloud() as cloud:
        assert accepted(cloud, make_stream(known, **key)) == 1
        admission(cloud, Overloaded("full"))
        again = outcomes_by_id(read(cloud, make_stream(known, new, **key)))
        assert accepted(cloud, make_stream(known, **key)) == 1
        assert refused(cloud, make_stream(known)).kind == "Overloaded"
        assert cloud.taken == 1
    assert isinstance(again[1], Verdict)
    assert (again[1].probability, again[1].queue_s, again[1].compute_s) == (0.2, 0.0, 0.0)
    assert again[2] == Refusal(2, "Overloaded", "full")
