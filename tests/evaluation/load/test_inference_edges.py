"""Edges that send a request for each ROI, to the real service with a reader that sleeps."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from evaluation.load.generator import LATE, Arrival, Edges, Outcomes
from evaluation.load.inference_edges import InferenceEdges, reason_of
from evaluation.load.load import Service, services
from evaluation.load.peers import ROI_SHAPE
from protos.errors import DeadlineUnmeetable, to_status
from protos.messages import Priority

PROGRAM = ("evaluation.load.sleeping_service", "--fixed-ms", "20", "--each-ms", "5")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The cloud with a reader that sleeps."""
    folder: Path = tmp_path_factory.mktemp("service")
    with services(folder, program=PROGRAM, modes={"deadline": {}}) as (started,):
        yield started


def sent(service: Service, *arrivals: Arrival) -> Outcomes:
    async def send(edges: Edges) -> Outcomes:
        async with edges:
            return await edges.send(arrivals)

    return asyncio.run(send(InferenceEdges(service.address, ROI_SHAPE, 2, "sleeping")))


def test_every_roi_of_a_study_is_a_request_of_its_own(service: Service) -> None:
    outcomes = sent(service, Arrival(0.0, 0, 3, 20.0), Arrival(0.1, 1, 2, 20.0, Priority.STAT))
    assert len(outcomes.in_time) == len(outcomes.rois) == 5
    assert sorted(one.edge for one in outcomes.rois) == [0, 0, 0, 1, 1]
    assert [one.is_stat for one in outcomes.rois if one.edge == 1] == [True, True]


def test_a_budget_that_cannot_be_met_is_refused_or_late(service: Service) -> None:
    sent(service, Arrival(0.0, 0, 4, 20.0))  # the service learns how long its reader takes
    outcomes = sent(service, Arrival(0.0, 0, 4, 0.02))
    assert len(outcomes.rois) == 4
    assert set(outcomes.lost) <= {"DeadlineUnmeetable", LATE}
    assert not outcomes.in_time


def test_saturation_keeps_the_service_busy(service: Service) -> None:
    async def saturate() -> Outcomes:
        async with InferenceEdges(service.address, ROI_SHAPE, 2, "sleeping") as edges:
            return await edges.saturate(4, 0.5, budget_s=60.0, at_once=4)

    outcomes = asyncio.run(saturate())
    assert len(outcomes.in_time) == len(outcomes.rois) >= 16


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ("[request id: 17] Exceeds maximum queue size", "UNAVAILABLE: Exceeds maximum queue size"),
        ("dropped (queued=48)", "UNAVAILABLE: dropped"),
    ],
)
def test_reasons_of_other_servers_count_together(details: str, reason: str) -> None:
    empty = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, empty, empty, details)
    assert reason_of(error) == reason


def test_an_error_of_overread_has_its_class() -> None:
    code, details, metadata = to_status(DeadlineUnmeetable("no"))
    pairs = grpc.aio.Metadata(*metadata)
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), pairs, details)
    assert reason_of(error) == "DeadlineUnmeetable"
