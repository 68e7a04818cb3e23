"""ROIs at the service: the wrong, the small, the damaged and those sent again.

What waits at the service: who goes first, who has no place, and what is never read.

What the service refuses before it pays for it, and what it tells a caller before it sends.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from imaging.volume import UInt8Array
from models.runtime.second_reader import Readings
from protos import codec
from protos import overread_pb2 as pb
from protos.errors import DeadlineUnmeetable, Overloaded, OverreadError
from protos.messages import Priority, Refusal, Roi, Summary, Verdict
from protos.metadata import accepted_of
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
from tests.cloud.running import MeanReader, RunningCloud


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
        outcomes = read(cloud, make_stream(small, large))
    refusals = {a.roi_id: a for a in outcomes if isinstance(a, Refusal)}
    assert refusals[1].error == "InvalidRequest"
    assert "(1, 8, 8)" in refusals[1].reason
    assert refusals[2].error == "TooLarge"


def test_a_smaller_roi_is_mirrored_and_its_mask_cut_back(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """The model reads its own shape, and the mask that comes back has the shape that was sent."""

    class Outliner(MeanReader):
        def read(self, batch: UInt8Array) -> Readings:
            assert batch.shape[1:] == (8, 8, 8)
            return replace(super().read(batch), mask=batch == 99)

    voxels = np.full((4, 8, 6), 51, np.uint8)
    voxels[1, 2, 3] = 99
    with start_cloud(Outliner()) as cloud:
        verdict, _ = read(cloud, make_stream(make_roi(1, voxels=voxels)))
    assert isinstance(verdict, Verdict)
    np.testing.assert_array_equal(codec.unpack_mask(verdict.mask, (4, 8, 6)), voxels == 99)


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
        cloud.reader.gate.clear()  # or the study could end before the rest is there
        more = make_stream(make_roi(1), make_roi(2), roi_count=1)
        assert refused(cloud, more).kind == "InvalidRequest"
        other = make_stream(make_roi(1), make_roi(1, 200))
        assert refused(cloud, other).kind == "InvalidRequest"
        header, roi = make_stream(make_roi(1))
        assert refused(cloud, [header, roi, roi, roi]).kind == "TooLarge"


def test_a_refused_roi_that_comes_again_is_not_counted_as_announced_twice(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, until: Until
) -> None:
    """What one stream repeats takes nothing from what another has announced."""
    header, wrong = make_stream(make_roi(1, edge_score=1.5))
    outbox: queue.SimpleQueue[pb.ReadRequest | None] = queue.SimpleQueue()
    with start_cloud() as cloud, cloud.stub() as stub:
        batcher = cloud.server._batcher
        batcher.announced_rois += 5
        answers = stub.Read(iter(outbox.get, None), timeout=20)
        for request in (header, wrong, wrong):
            outbox.put(request)
        assert [next(answers).refusal.roi_id for _ in range(2)] == [1, 1]
        assert batcher.announced_rois == 5
        outbox.put(None)
        assert next(answers).summary.refused == 1
        until(lambda: batcher.announced_rois == 5)


def line_is(cloud: RunningCloud, waiting: int) -> bool:
    """Whether the model has one ROI and so many wait behind it."""
    return [taken(cloud), in_queue(cloud)] == [1, waiting]


def test_a_cancelled_study_is_not_read(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, until: Until
) -> None:
    """What waits for a caller that has gone never reaches the model."""
    with start_cloud(max_batch=1) as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        call = stub.Read(iter(make_stream(*(make_roi(i) for i in range(5)))), timeout=20)
        until(partial(line_is, cloud, 4))
        call.cancel()
        until(lambda: cloud.count("overread_cloud_open_streams") == 0)
        cloud.reader.gate.set()
        read(cloud, make_stream(make_roi(9), study_key="k2"))
        assert [len(batch) for batch in cloud.reader.batches] == [1, 1]  # under way, and k2's
        assert cloud.count("overread_cloud_streams_total", end="cancelled") == 1


def test_a_stat_study_overtakes_routine_ones(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, until: Until
) -> None:
    """While the model is busy with routine work, what is urgent goes to the head of the queue."""
    studies = [("under way", 10, Priority.ROUTINE), ("routine", 20, Priority.ROUTINE)]
    studies += [("stat", 30, Priority.STAT)]
    with start_cloud(max_batch=1) as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        calls = []
        for waiting, (key, value, priority) in enumerate(studies):
            requests = make_stream(make_roi(1, value), study_key=key, priority=priority)
            calls.append(stub.Read(iter(requests), timeout=20))
            until(partial(line_is, cloud, waiting))
        cloud.reader.gate.set()
        assert all(len(list(call)) == 2 for call in calls)
        assert cloud.reader.batches == [[10.0], [30.0], [20.0]]


def test_what_ran_out_of_time_in_the_queue_is_not_read(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, until: Until
) -> None:
    """The model is held until a study behind it is late: that is told, and not read."""
    with start_cloud(max_batch=1) as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        call = stub.Read(iter(make_stream(make_roi(1, 10))), timeout=20)
        until(lambda: taken(cloud) == 1)
        late = make_stream(make_roi(1, 20), make_roi(2, 30), study_key="k2", budget_s=0.4)
        outcomes = stub.Read(iter(late), timeout=20)
        until(lambda: in_queue(cloud) == 2)
        time.sleep(0.5)
        cloud.reader.gate.set()
        assert len(list(call)) == 2
        refusals = [r for r in map(codec.decode_response, outcomes) if isinstance(r, Refusal)]
        assert [r.error for r in refusals] == ["DeadlinePassed", "DeadlinePassed"]
        assert cloud.reader.batches == [[10.0]]


def test_a_site_has_no_more_than_its_share_of_the_queue(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, until: Until
) -> None:
    """Of four places two are a site's while another waits, which is not barred by the first."""
    with start_cloud(max_batch=1, max_queued_rois=4, site_share=0.5) as cloud, cloud.stub() as stub:
        cloud.reader.gate.clear()
        first = stub.Read(iter(make_stream(make_roi(1))), timeout=20)
        until(lambda: taken(cloud) == 1)

        def ask(site: str, *numbers: int) -> Any:
            requests = make_stream(*map(make_roi, numbers), study_key=f"{site}{numbers}")
            return stub.Read(iter(requests), timeout=20, metadata=(("overread-site", site),))

        north = ask("north", 1, 2, 3, 4)
        until(lambda: in_queue(cloud) == 4)
        south = ask("south", 1)
        until(lambda: cloud.count("overread_cloud_rois_total", outcome="Overloaded") == 1)
        with pytest.raises(OverreadError, match=r"site north has 3 ROIs queued; .* is 2"), typed():
            list(ask("north", 5))
        cloud.reader.gate.set()
        kinds = [[type(codec.decode_response(r)) for r in call] for call in (first, north, south)]
        assert kinds[0] == kinds[2] == [Verdict, Summary]
        assert (
            sorted(kind.__name__ for kind in kinds[1]) == ["Refusal", "Summary"] + ["Verdict"] * 3
        )


def test_a_reader_in_steps_answers_as_a_whole_one(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """Batches overlap in the steps, and each ROI of each study gets its own verdict; one fails."""

    class Steps(MeanReader):
        @property
        def steps(self) -> tuple[Callable[[Any], Any], ...]:
            return (lambda batch: batch, self.read, lambda readings: readings)

    values = [*range(0, 250, 10), 255]
    with start_cloud(reader=Steps(), max_batch=2) as cloud, cloud.stub() as stub:
        calls = [
            stub.Read(
                iter(make_stream(*map(make_roi, range(26), values), study_key=key)), timeout=20
            )
            for key in ("k1", "k2")
        ]
        for call in calls:
            *outcomes, summary = map(codec.decode_response, call)
            verdicts = {v.roi_id: v for v in outcomes if isinstance(v, Verdict)}
            refusals = {r.roi_id: r for r in outcomes if isinstance(r, Refusal)}
            assert sorted([*verdicts, *refusals]) == list(range(26))
            assert refusals[25].error == "ModelFailed"
            assert len(refusals) <= 3  # its own 255, one in its batch, and the other study's
            for number, verdict in verdicts.items():
                assert verdict.probability == pytest.approx(values[number] / 255)
            assert isinstance(summary, Summary)
            assert (summary.answered, summary.refused) == (len(verdicts), len(refusals))


Admit = Callable[[RunningCloud, Any], list[int]]


@pytest.fixture
def admit(monkeypatch: pytest.MonkeyPatch) -> Admit:
    """Lets a test say what admission answers, or raises; gives how many ROIs it was asked for."""

    def set_(cloud: RunningCloud, answer: Any) -> list[int]:
        asked: list[int] = []

        def check(*_: Any, rois: int = 1) -> int:
            asked.append(rois)
            if isinstance(answer, Exception):
                raise answer
            return int(answer)

        def room(_: Any) -> list[Any]:
            check()
            return []

        monkeypatch.setattr(cloud.server._batcher.admission, "check", check)
        monkeypatch.setattr(cloud.server._batcher.admission, "admit", room)
        return asked

    return set_


def told(cloud: RunningCloud, requests: list[pb.ReadRequest]) -> int | None:
    """What the initial metadata of a study's stream says."""
    with cloud.stub() as stub:
        call = stub.Read(iter(requests), timeout=20)
        list(call)
        return accepted_of(call.initial_metadata())


def test_the_header_is_asked_for_all_that_it_announces(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, admit: Admit
) -> None:
    """The caller knows how many of its ROIs can be met before it has sent the first."""
    outbox: queue.SimpleQueue[pb.ReadRequest | None] = queue.SimpleQueue()
    header, first, *_ = make_stream(*map(make_roi, range(5)))
    with start_cloud() as cloud, cloud.stub() as stub:
        asked = admit(cloud, 3)
        outbox.put(header)
        call = stub.Read(iter(outbox.get, None), timeout=20)
        assert accepted_of(call.initial_metadata()) == 3
        assert asked == [5]
        outbox.put(first)
        assert next(call).verdict.roi_id == 0
        outbox.put(None)
        assert next(call).summary.answered == 1


def test_a_study_without_rois_is_told_none(
    start_cloud: StartCloud, make_stream: MakeStream, admit: Admit
) -> None:
    """Nothing is asked of admission for it."""
    with start_cloud() as cloud:
        asked = admit(cloud, Overloaded("full"))
        assert told(cloud, make_stream()) == 0
        assert asked == []


def test_a_caller_that_sends_fewer_ends_its_study_with_them(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream
) -> None:
    """What was announced and never came is neither answered nor refused."""
    with start_cloud() as cloud:
        *verdicts, summary = read(cloud, make_stream(make_roi(1), make_roi(2), roi_count=9))
    assert sorted(v.roi_id for v in verdicts if isinstance(v, Verdict)) == [1, 2]
    assert isinstance(summary, Summary)
    assert (summary.answered, summary.refused) == (2, 0)


def test_an_roi_without_a_chance_costs_neither_sum_nor_padding(
    start_cloud: StartCloud,
    make_roi: MakeRoi,
    make_stream: MakeStream,
    admit: Admit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Too large is told before too busy, and both before anything is made of the voxels."""
    small, large = make_roi(1), make_roi(2)
    large = make_roi(2, voxels=large.voxels.repeat(2, axis=0))
    requests = make_stream(small, large)
    requests[1].roi.checksum = requests[2].roi.checksum = bytes(16)
    for cost in ("verify", "pad"):
        monkeypatch.setattr(f"cloud.stream.{cost}", lambda *_: pytest.fail("it was paid for"))
    with start_cloud(max_roi_voxels=512) as cloud:
        admit(cloud, 2)
        outbox: queue.SimpleQueue[pb.ReadRequest | None] = queue.SimpleQueue()
        with cloud.stub() as stub:
            call = stub.Read(iter(outbox.get, None), timeout=20)
            outbox.put(requests[0])
            call.initial_metadata()
            admit(cloud, DeadlineUnmeetable("no time", 2.5))
            for request in (*requests[1:], None):
                outbox.put(request)
            *outcomes, summary = map(codec.decode_response, call)
    by_id = {one.roi_id: one for one in outcomes if isinstance(one, Refusal)}
    assert by_id[1] == Refusal(1, "DeadlineUnmeetable", "no time", 2.5)
    assert by_id[2].error == "TooLarge"
    assert isinstance(summary, Summary)
    assert (summary.answered, summary.refused) == (0, 2)


def test_a_study_sent_again_is_answered_whatever_the_load(
    start_cloud: StartCloud, make_roi: MakeRoi, make_stream: MakeStream, admit: Admit
) -> None:
    """What is remembered is given though nothing is admitted; what is new of it is refused."""
    known, new = make_roi(1), make_roi(2, 102)
    with start_cloud() as cloud:
        assert told(cloud, make_stream(known)) == 1
        admit(cloud, Overloaded("full"))
        again = read(cloud, make_stream(known, new))
        assert told(cloud, make_stream(known)) == 1
        assert refused(cloud, make_stream(known, study_key="k2")).kind == "Overloaded"
        assert taken(cloud) == 1
    outcomes = {one.roi_id: one for one in again if not isinstance(one, Summary)}
    assert isinstance(outcomes[1], Verdict)
    assert outcomes[2] == Refusal(2, "Overloaded", "full")
