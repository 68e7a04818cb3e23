"""The load generator: its arrivals, and how it asks a real service with a reader that sleeps."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from evaluation.load.services import Service, services
from evaluation.load.traffic import LATE, Arrival, Edges, Outcomes, Traffic, poisson, reason_of
from evaluation.sleeping_cloud import program
from protos.errors import DeadlineUnmeetable, to_status
from protos.messages import Priority


def test_the_rate_is_met_and_gaps_are_exponential() -> None:
    """2,000 s at 50 ROIs a second, 2.5 a study: 20 studies a second, gaps as spread as long."""
    arrivals = poisson(Traffic(), 50.0, 2000.0, seed=3)
    gaps_s = np.diff([0.0] + [one.at_s for one in arrivals])
    assert sum(one.rois for one in arrivals) / 2000.0 == pytest.approx(50.0, rel=0.03)
    assert gaps_s.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.03)


def test_studies_follow_the_traffic_and_the_seed() -> None:
    arrivals = poisson(Traffic(edges=4), 50.0, 1000.0, seed=3)
    count = len(arrivals)
    for values, options in (
        ([one.rois for one in arrivals], 4),
        ([one.budget_s for one in arrivals], 3),
        ([one.edge for one in arrivals], 4),
    ):
        shares = [n / count for n in Counter(values).values()]
        assert shares == pytest.approx([1 / options] * options, abs=0.02)
    stat = sum(one.priority is Priority.STAT for one in arrivals)
    assert stat / count == pytest.approx(0.1, abs=0.01)
    again = [poisson(Traffic(), 20.0, 10.0, seed=seed) for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """The cloud with a reader that sleeps."""
    with services({"deadline": {}}, program(20, 5)) as (started,):
        yield started


def sent(service: Service, *arrivals: Arrival) -> Outcomes:
    async def send(edges: Edges) -> Outcomes:
        async with edges:
            return await edges.send(arrivals)

    return asyncio.run(send(service.connect(2)))


def test_every_roi_of_a_study_has_its_outcome(service: Service) -> None:
    before = service.model_time()
    outcomes = sent(service, Arrival(0.0, 0, 3, 20.0), Arrival(0.1, 1, 2, 20.0, Priority.STAT))
    assert len(outcomes.in_time) == len(outcomes.rois) == 5
    assert sorted(one.edge for one in outcomes.rois) == [0, 0, 0, 1, 1]
    assert [one.is_stat for one in outcomes.rois if one.edge == 1] == [True, True]
    assert service.model_time()[0] > before[0]


def test_a_budget_that_cannot_be_met_is_refused_or_late(service: Service) -> None:
    sent(service, Arrival(0.0, 0, 4, 20.0))  # the service learns how long its reader takes
    outcomes = sent(service, Arrival(0.0, 0, 4, 0.02))
    assert len(outcomes.rois) == 4
    assert set(outcomes.lost) <= {"DeadlineUnmeetable", "broken off", LATE}
    assert not outcomes.in_time


def test_saturation_keeps_the_service_busy(service: Service) -> None:
    async def saturate() -> Outcomes:
        async with service.connect(2) as edges:
            return await edges.saturate(4, 0.5, budget_s=60.0, at_once=4)

    outcomes = asyncio.run(saturate())
    assert len(outcomes.in_time) == len(outcomes.rois) >= 16


def test_an_error_of_overread_has_its_class() -> None:
    code, details, metadata = to_status(DeadlineUnmeetable("no"))
    pairs = grpc.aio.Metadata(*metadata)
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), pairs, details)
    assert reason_of(error) == "DeadlineUnmeetable"
