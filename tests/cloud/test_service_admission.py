"""What the service refuses before it pays for it, and what it tells a caller before it sends."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

import pytest

from protos import codec
from protos import overread_pb2 as pb
from protos.errors import DeadlineUnmeetable, Overloaded
from protos.messages import Refusal, Summary, Verdict
from protos.metadata import accepted_of
from tests.cloud.calling import MakeRoi, MakeStream, StartCloud, read, refused, taken
from tests.cloud.running import RunningCloud

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

        monkeypatch.setattr(cloud.server._batcher, "check", check)
        monkeypatch.setattr(cloud.server._batcher._gate, "room", room)
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
    for cost in ("verify", "padded"):
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
