"""Clients that mean no good, beside an honest one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from cloud.connections import CROWD
from evaluation.hostile import clients
from evaluation.hostile.clients import (
    ATTACKS,
    CALLERS,
    HOLDS,
    Target,
    freed_s,
    hostile_clients,
    target,
)
from evaluation.load.traffic import Arrival, Edges, Outcomes

pytestmark = pytest.mark.skipif(
    not clients.has_ipv6(), reason="loopback has no IPv6, which tells the sites apart"
)

BUDGET_S, PATIENCE_S = 120.0, 300.0
"""The budget of an honest study: those of hostile clients are due long before it."""
ENDED, OPEN = "overread_cloud_streams_total", "overread_cloud_open_streams"
CONNECTED = "overread_cloud_connections_ratio"


@pytest.fixture(scope="module")
def service() -> Iterator[Target]:
    with target((2.0, 5.0)) as running:
        yield running


@asynccontextmanager
async def attacked(service: Target, name: str) -> AsyncIterator[Callable[[str], float]]:
    """Attacks the cloud while entered; yields how far one of its metrics has grown since."""
    # another attack has ended
    await until(lambda: service.cloud.samples()[OPEN] == 0)
    await until(lambda: service.cloud.samples()[CONNECTED] < CROWD / 2)
    before = service.cloud.samples()

    def grown(metric: str) -> float:
        return service.cloud.samples()[metric] - before[metric]

    attack = asyncio.create_task(ATTACKS[name](service.hostile))
    try:
        await until(
            lambda: (
                grown(ENDED) + grown(OPEN) >= CALLERS / 2
                or service.cloud.samples()[CONNECTED] > CROWD
            )
        )
        yield grown
    finally:
        attack.cancel()
        await asyncio.gather(attack, return_exceptions=True)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(holds):
            await asyncio.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize("name", list(ATTACKS))
def test_beside_a_hostile_client_an_honest_one_is_answered(service: Target, name: str) -> None:
    studies = [Arrival(0.1 * number, number, 4, BUDGET_S) for number in range(4)]

    async def send() -> Outcomes:
        async with Edges(service.honest, 4) as edges:
            await edges.send(studies[:1])  # a site that the cloud knows has room beside a flood
            async with attacked(service, name):
                return await edges.send(studies)

    outcomes = asyncio.run(send())
    assert (len(outcomes.in_time), dict(outcomes.lost)) == (16, {})


@pytest.mark.long
def test_a_hostile_client_reaches_the_cloud_under_another_name(service: Target) -> None:
    """Otherwise it would take from its own share only."""

    async def demoted() -> None:
        async with attacked(service, "a new site name for each study, all stat") as grown:
            await until(lambda: grown("overread_cloud_demoted_streams_total") > 0)

    asyncio.run(demoted())


@pytest.mark.long
@pytest.mark.parametrize("name", list(HOLDS))
def test_places_that_are_held_without_work_become_free(
    service: Target, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "HELD", 20)
    monkeypatch.setattr(clients, "HELD_BUDGET_S", 1.0)
    assert asyncio.run(freed_s(service, HOLDS[name])) < 60.0  # else never
    assert service.cloud.samples()[OPEN] == 0


def test_a_missed_bar_is_a_row_that_says_so() -> None:
    rows = [{"attack": name, "kept": 0.95, "freed_s": 0.1} for name in "ab"]
    result = {"attacks": [*rows, {"attack": "c", "kept": 0.5, "freed_s": None}]}
    result |= {"quiet_in_time": 0.97, "memory_mb": 300.0, "memory_bar_mb": 400.0}
    result |= {"rate_bar": 0.9, "freed_bar_s": 1.0}
    assert hostile_clients.table("attacks").of(result).cells[2] == ["c", "50.0 %", "-"]
    assert [bar.met for bar in hostile_clients.bars(result)] == [False, True, True, True]
