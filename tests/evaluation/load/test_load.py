"""The scenarios of load: figures by hand, and each kind of measurement on services that sleep."""

import asyncio
import json
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cloud.scheduling.arrivals import Rules
from cloud.settings import load_settings
from evaluation.load.load import ORDERS, SCENARIOS, answer_times, gains, load, rows
from evaluation.load.overload import Plan, Run, fairness, figures
from evaluation.load.services import EDF, pinned, services, split_cores
from evaluation.load.traffic import LATE, Arrival, Edges, Outcome, Outcomes
from evaluation.sleeping_cloud import EarliestDeadline, program
from evaluation.world import write_toml
from protos.errors import Overloaded
from tests.cloud.scheduling.builders import NOW_S, STAT, due, timing


def run_of(mode: str, load: float, at_s: list[float], lost: dict[str, int]) -> Run:
    """A run with answers at these times, each after 0.1 s."""
    rois = [Outcome(i, False, 0.1, one) for i, one in enumerate(at_s)]
    rois += [Outcome(0, True, 0.2, 0.2, error) for error in Counter(lost).elements()]
    outcomes = Outcomes(rois=rois, span_s=3.0, accepted=10, dropped=1)
    return Run(mode, load, outcomes, compute_s=4.0, wasted_s=1.0)


def test_rounds_are_pooled_and_compared_with_the_best_capacity() -> None:
    """Three of four answers within two seconds at a capacity of 2 a second are 75 %."""
    plan = Plan(loads=(2.0,), rounds=2, span_s=2.0)
    capacity = {"deadline": [2.0, 2.0], "one at a time": [1.0, 2.0]}
    lost = {"DeadlineUnmeetable": 2, LATE: 1, "DeadlinePassed": 1}
    runs = [
        run_of("deadline", 2.0, [0.5, 1.0, 2.0, 2.5], lost),
        run_of("deadline", 2.0, [0.5, 1.0, 1.5, 2.5], lost),
        run_of("one at a time", 2.0, [], {}),
    ]
    result = figures(plan, capacity, runs)
    assert result["throughput_of_one_at_a_time"] == {"deadline": 1.5, "one at a time": 1.0}
    first, second = result["runs"]
    assert (first["offered"], first["in_time"], first["rejected"], first["late"]) == (16, 8, 4, 4)
    assert first["goodput_of_capacity"] == pytest.approx(0.75)
    assert (first["goodput_low"], first["goodput_high"]) == pytest.approx((0.75, 0.75))
    assert first["p50_ms"] is None  # half of the ROIs had no answer in time
    assert first["stat_p50_ms"] is None
    assert first["refusal_p50_ms"] == pytest.approx(200.0)
    assert first["wasted_share"] == pytest.approx(0.25)
    assert (second["offered"], second["p50_ms"], second["goodput_of_capacity"]) == (0, None, 0)
    json.dumps(result, allow_nan=False)
    bars = list(load.bars({**result, "where": "here"}))
    met = {bar.what.partition("here: ")[2]: bar.met for bar in bars}
    assert met == {
        "answered in time": False,
        "work wasted": False,
        "stat not answered": False,
        "accepted and dropped": False,
        "late": False,
        "median time to a refusal": False,
    }


def test_fairness_is_that_of_jain() -> None:
    """Equal shares of unequal demands give 1; one of four that gets all gives a quarter."""
    answered, lost = Outcome(0, False, 0.1, 0.1), Outcome(0, False, 0.1, 0.1, LATE)
    equal = [
        replace(one, edge=edge) for edge, n in ((0, 1), (1, 7)) for one in (answered, lost) * n
    ]
    assert fairness(equal) == pytest.approx(1.0)
    assert fairness([answered, *(replace(lost, edge=edge) for edge in (1, 2, 3))]) == 0.25
    assert fairness([lost]) is None


def test_answers_that_come_early_are_compared_with_the_last() -> None:
    """Three answers at 1, 2 and 3 s: their mean is 2 s, a third less."""
    rois = [Outcome(0, False, took_s, 0.0) for took_s in (1.0, 2.0, 3.0)] * 2
    assert answer_times(Outcomes(rois=rois), 3) == (3.0, 2.0)
    found = {
        "one at a time": [(10.0, 4.0, 2.0)] * 2,
        "batches": [(40.0, 1.0, 0.75), (50.0, 1.0, 0.75)],
        "2 instances": [(80.0, 0.75, 0.5), (50.0, 0.75, 0.5)],
    }
    single, batches, two = rows(found, dict.fromkeys(found, "engine"))
    assert (single["throughput_ratio"], single["merging"]) == (1.0, -0.5)
    assert (batches["throughput_ratio"], batches["added_ms"]) == (4.5, 0.0)
    assert (two["throughput_ratio"], two["added_ms"]) == (1.5, -250.0)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_service_has_valid_settings(name: str, tmp_path: Path) -> None:
    for own in SCENARIOS[name].services.values():
        settings = {key: value for key, value in own.items() if key != EDF}
        load_settings(write_toml(tmp_path / "cloud.toml", settings))


def test_services_in_all_orders_answer_reject_or_are_late() -> None:
    arrivals = [Arrival(0.01 * i, i, 2, 20.0) for i in range(3)] + [Arrival(0.05, 0, 3, 0.02)]

    async def offered(edges: Edges) -> Outcomes:
        async with edges:
            return await edges.send(arrivals)

    with services(ORDERS, program(20, 10)) as started:
        assert [service.mode for service in started] == list(ORDERS)
        found = [asyncio.run(offered(service.connect(2))) for service in started]
    for one in found:
        assert (len(one.rois), len(one.in_time), sum(one.lost.values())) == (9, 6, 3)
        assert all(answer.took_s <= 20.0 for answer in one.in_time)
    assert set(found[0].lost) - {LATE} <= {"DeadlineUnmeetable", "broken off"}


@pytest.mark.long
def test_gains_of_devices_that_sleep() -> None:
    with services(SCENARIOS["devices"].services, program(20, 1)) as started:
        said = gains(started, Plan(rounds=1, span_s=0.5, at_once=4), 24)
    assert said["rois_a_study"] == 24
    assert [one["name"] for one in said["services"]] == list(SCENARIOS["devices"].services)
    assert said["services"][3]["engine"] == " + ".join(f"1 x asleep:fake:{i}" for i in range(3))
    assert all(one["rois_per_s"] > 0 for one in said["services"])


linux = pytest.mark.skipif(sys.platform != "linux", reason="cores can be chosen on Linux")


@linux
def test_split_cores_are_all_of_this_process_s_cores() -> None:
    mine = os.sched_getaffinity(0)
    service, generator = split_cores()
    assert service | generator == mine
    assert service.isdisjoint(generator) == (len(mine) > 1)
    assert split_cores(shared=True) == (mine, mine)


@linux
def test_pinning_ends_with_the_context() -> None:
    before = os.sched_getaffinity(0)
    one = {min(before)}
    with pinned(one):
        assert os.sched_getaffinity(0) == one
    assert os.sched_getaffinity(0) == before


def test_an_order_for_comparison() -> None:
    """It knows no priority and no site; the first batch is as the deadlines allow."""
    scheduler = EarliestDeadline(Rules(max_queued=5), timing(), lambda: NOW_S)
    rois = [due(90.0), due(55.5), due(70.0, STAT), due(99.0, site="a"), due(80.0, site="a")]
    for roi in rois:
        scheduler.admit([roi])
        scheduler.put([roi])
    with pytest.raises(Overloaded):
        scheduler.admit([due(99.0)])
    assert [rois.index(one) for one in scheduler.order(scheduler._queues, NOW_S)] == [1, 2, 4, 0, 3]
    assert len(scheduler.take()) == 3
