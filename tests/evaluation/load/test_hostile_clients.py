"""Clients that mean no good, beside an honest one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from evaluation.load import hostile_clients
from evaluation.load.hostile_clients import ATTACKS, HOLDS, Cloud, cloud
from evaluation.load.replicas import samples_at

pytestmark = pytest.mark.skipif(
    not hostile_clients.has_ipv6(), reason="loopback has no IPv6, which tells the sites apart"
)

PLAN = (20.0, 1.5, 0)
"""20 ROIs a second for a second and a half: the cloud reads 200."""


@pytest.fixture(scope="module")
def service() -> Iterator[Cloud]:
    with cloud(None, ("--fixed-ms", "2", "--each-ms", "5")) as running:
        yield running


@pytest.mark.parametrize("name", list(ATTACKS))
def test_beside_a_hostile_client_an_honest_one_is_answered(service: Cloud, name: str) -> None:
    assert asyncio.run(hostile_clients._honest(service, PLAN, ATTACKS[name])) > 0.5


def test_a_hostile_client_reaches_the_cloud_under_another_name(service: Cloud) -> None:
    """Otherwise it would take from its own share only."""
    before = samples_at(service.metrics)
    asyncio.run(hostile_clients._honest(service, PLAN, ATTACKS["headers without ROIs"]))
    after = samples_at(service.metrics)
    honest = PLAN[0] * PLAN[1]
    ended = "overread_cloud_streams_total"
    assert after[ended] - before[ended] > 2 * honest
    demoted = "overread_cloud_demoted_streams_total"
    asyncio.run(hostile_clients._honest(service, PLAN, next(iter(ATTACKS.values()))))
    assert samples_at(service.metrics)[demoted] > after[demoted]


@pytest.mark.parametrize("name", list(HOLDS))
def test_places_that_are_held_without_work_become_free(
    service: Cloud, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile_clients, "HELD", 20)
    monkeypatch.setattr(hostile_clients, "HELD_BUDGET_S", 1.0)
    assert asyncio.run(hostile_clients._freed_s(service, HOLDS[name])) < 30.0
    assert samples_at(service.metrics)["overread_cloud_open_streams"] == 0


def test_a_missed_bar_is_a_row_that_says_so() -> None:
    result = {"attacks": [{"attack": "a", "kept": 0.5, "freed_s": None}]}
    assert hostile_clients.table(result).cells == [["a", "50.0 %", ""]]
