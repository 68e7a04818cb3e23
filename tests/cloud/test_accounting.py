"""Every stream ends in one count, and every ROI that arrives in one, whatever happens to them."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from cloud.stream import StudyStream
from cloud.study_trace import StudyTrace
from protos import overread_pb2 as pb
from tests.cloud.running import (
    RunningCloud,
    make_roi,
    make_stream,
    read,
    refused,
    run_cloud,
    unfinished,
    until,
)


def rois(cloud: RunningCloud) -> dict[str, int]:
    return cloud.counts("rois", "outcome")


def streams(cloud: RunningCloud) -> dict[str, int]:
    return cloud.counts("streams", "end")


def test_each_outcome_of_an_roi_is_counted_once() -> None:
    header, first, wrong = make_stream(make_roi(1), make_roi(2, edge_score=1.5))
    with run_cloud() as cloud:
        *outcomes, _ = read(cloud, [header, first, first, wrong])
        assert sorted(one.roi_id for one in outcomes) == [1, 2]
        read(cloud, [header, first])
        assert rois(cloud) == {"verdict": 1, "repeated": 1, "InvalidRequest": 1, "cached": 1}
        refused(cloud, make_stream(make_roi(1), roi_count=0, study_key="k2"))
        assert rois(cloud)["InvalidRequest"] == 2
        assert streams(cloud) == {"complete": 2, "InvalidRequest": 1}


def test_a_fault_of_the_program_is_an_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.stream.verdict_of", lambda *_: 1 / 0)
    with run_cloud() as cloud:
        assert refused(cloud, make_stream(make_roi(1))).kind == "ServiceFault"
        # it was read: only what it was to become failed
        assert rois(cloud) == {"verdict": 1}
        assert streams(cloud) == {"ZeroDivisionError": 1}


@pytest.mark.parametrize("seed", range(3))
def test_the_counts_add_up_whatever_the_callers_do(seed: int) -> None:
    """Callers that send damaged, repeated and too many ROIs, go away, or stop to send."""
    draw, arrived, opened = random.Random(seed), [0], [0]

    class Counted(StudyTrace):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            opened[0] += 1

    settings = {"max_batch": 2, "max_queued_rois": 6, "max_streams": 6, "idle_timeout_s": 0.2}
    with capture_logs(), run_cloud(**settings) as cloud:
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(4) as callers:
            patch.setattr("cloud.stream.StudyStream._take", _counting(arrived))
            patch.setattr("cloud.service.StudyTrace", Counted)
            scripts = [_script(random.Random(draw.random()), number) for number in range(40)]
            list(callers.map(lambda script: _call(cloud, *script), scripts))
            until(lambda: cloud.open_streams == 0)
            until(lambda: cloud.queued == 0)
        assert sum(streams(cloud).values()) == opened[0] > 20
        assert sum(rois(cloud).values()) == arrived[0] > 10
        assert min(len(streams(cloud)), len(rois(cloud))) > 2


def _counting(arrived: list[int]) -> Any:
    """The method that takes a request, and counts each ROI that it was given."""
    whole = StudyStream._take

    def take(self: StudyStream, request: pb.ReadRequest) -> None:
        if request.HasField("roi"):
            arrived[0] += 1
        whole(self, request)

    return take


def _script(draw: random.Random, number: int) -> tuple[list[pb.ReadRequest], str, float]:
    """Requests, how the caller ends its call, and after which time."""
    sent = [make_roi(i, draw.choice([10, 20, 255])) for i in range(draw.randrange(1, 6))]
    count = max(0, len(sent) + draw.choice([-1, 0, 0, 0, 1]))
    budget_s = draw.choice([0.05, 1.0, 5.0])
    requests = make_stream(*sent, study_key=f"k{number % 30}", roi_count=count, budget_s=budget_s)
    if draw.random() < 0.3:
        requests.append(draw.choice(requests))  # an ROI, or the header, once more
    if draw.random() < 0.3:
        damaged = pb.ReadRequest.FromString(requests[1].SerializeToString())
        damaged.roi.edge_score = 2.0
        requests.insert(1, damaged)
    end = draw.choice(["close", "close", "cancel", "leave open"])
    return requests, end, draw.choice([0.0, 0.002, 0.02])


def _call(cloud: RunningCloud, requests: list[pb.ReadRequest], end: str, after_s: float) -> None:
    """Make one call, and go away after that time, or take all that comes."""
    with cloud.stub() as stub, ExitStack() as held, suppress(grpc.RpcError):
        sent = held.enter_context(unfinished(*requests)) if end == "leave open" else iter(requests)
        call = stub.Read(sent, timeout=10)
        if end == "cancel":
            threading.Event().wait(after_s)
            call.cancel()
        list(call)
