"""Clients that mean no good, beside an honest one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from evaluation.load import hostile_clients
from evaluation.load.generator import Arrival, Edges, Outcomes
from evaluation.load.hostile_clients import ATTACKS, CALLERS, HOLDS, SHAPE, Cloud, cloud
from evaluation.load.replicas import samples_at
from tests.cloud.running import until

pytestmark = pytest.mark.skipif(
    not hostile_clients.has_ipv6(), reason="loopback has no IPv6, which tells the sites apart"
)

BUDGET_S = 30.0
"""Of an honest study; those of the hostile clients are due long before it."""
ENDED, OPEN = "overread_cloud_streams_total", "overread_cloud_open_streams"


@pytest.fixture(scope="module")
def service() -> Iterator[Cloud]:
    with cloud(None, ("--fixed-ms", "2", "--each-ms", "5")) as running:
        yield running


@contextmanager
def attacked(service: Cloud, name: str) -> Iterator[Callable[[str], float]]:
    """Attacks the cloud while entered; yields how far one of its metrics has grown since."""
    until(lambda: samples_at(service.metrics)[OPEN] == 0)  # those of another attack have ended
    before = samples_at(service.metrics)

    def grown(metric: str) -> float:
        return samples_at(service.metrics)[metric] - before[metric]

    with hostile_clients._beside(service.hostile, ATTACKS[name]):
        until(lambda: grown(ENDED) + grown(OPEN) >= CALLERS / 2)
        yield grown


@pytest.mark.parametrize("name", list(ATTACKS))
def test_beside_a_hostile_client_an_honest_one_is_answered(service: Cloud, name: str) -> None:
    studies = [Arrival(0.1 * number, number, 4, BUDGET_S) for number in range(4)]

    async def send() -> Outcomes:
        async with Edges(service.honest, SHAPE, 4) as edges:
            return await edges.send(studies)

    with attacked(service, name):
        outcomes = asyncio.run(send())
    assert (len(outcomes.in_time), dict(outcomes.lost)) == (16, {})


def test_a_hostile_client_reaches_the_cloud_under_another_name(service: Cloud) -> None:
    """Otherwise it would take from its own share only."""
    with attacked(service, "a new site name for each study, all stat") as grown:
        until(lambda: grown("overread_cloud_demoted_streams_total") > 0)


def test_the_honest_rate_is_a_share(service: Cloud) -> None:
    attack = ATTACKS["headers without ROIs"]
    assert 0.0 <= asyncio.run(hostile_clients._honest(service, (20.0, 0.5, 0), attack)) <= 1.0


@pytest.mark.parametrize("name", list(HOLDS))
def test_places_that_are_held_without_work_become_free(
    service: Cloud, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile_clients, "HELD", 20)
    monkeypatch.setattr(hostile_clients, "HELD_BUDGET_S", 1.0)
    assert asyncio.run(hostile_clients._freed_s(service, HOLDS[name])) < 60.0  # else never
    assert samples_at(service.metrics)[OPEN] == 0


def test_a_missed_bar_is_a_row_that_says_so() -> None:
    result = {"attacks": [{"attack": "a", "kept": 0.5, "freed_s": None}]}
    assert hostile_clients.table(result).cells == [["a", "50.0 %", ""]]
