import asyncio
import json
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluation.__main__ import app
from evaluation.load.generator import LATE, Arrival, Edges, Outcome, Outcomes, Traffic
from evaluation.load.load import MODES, Plan, Run, as_dict, fairness, pinned, services, split_cores

PROGRAM = ("evaluation.load.sleeping_service", "--fixed-ms", "20", "--each-ms", "10")


def run_of(mode: str, load: float, at_s: list[float], lost: dict[str, int]) -> Run:
    """A run with answers at these times, each after 0.1 s."""
    rois = [Outcome(i, False, 0.1, one) for i, one in enumerate(at_s)]
    rois += [Outcome(0, True, 0.2, 0.2, error) for error in Counter(lost).elements()]
    outcomes = Outcomes(rois=rois, span_s=3.0)
    return Run(mode, load, outcomes, compute_s=4.0, wasted_s=1.0)


def test_rounds_are_pooled_and_compared_with_the_best_capacity() -> None:
    """Three of four answers within two seconds at a capacity of 2 a second are 75 %."""
    plan = Plan(loads=(2.0,), rounds=2, span_s=2.0, seed=7)
    capacity = {"deadline": [2.0, 2.0], "one at a time": [1.0, 2.0]}
    lost = {"DeadlineUnmeetable": 2, LATE: 1, "DeadlinePassed": 1}
    runs = [
        run_of("deadline", 2.0, [0.5, 1.0, 2.0, 2.5], lost),
        run_of("deadline", 2.0, [0.5, 1.0, 1.5, 2.5], lost),
        run_of("one at a time", 2.0, [], {}),
    ]
    result = as_dict(plan, capacity, runs)
    assert result["seed"] == 7
    assert result["throughput_of_one_at_a_time"] == {"deadline": 1.5, "one at a time": 1.0}
    first, second = result["runs"]
    assert (first["offered"], first["in_time"], first["rejected"], first["late"]) == (16, 8, 4, 4)
    assert first["goodput_of_capacity"] == pytest.approx(0.75)
    assert first["goodput_of_capacity_by_round"] == pytest.approx([0.75, 0.75])
    assert (first["goodput_low"], first["goodput_high"]) == pytest.approx((0.75, 0.75))
    assert first["p50_ms"] is None  # half of the ROIs had no answer in time
    assert first["stat_p50_ms"] is None
    assert first["refusal_p95_ms"] == pytest.approx(200.0)
    assert first["wasted_share"] == pytest.approx(0.25)
    assert (second["offered"], second["p50_ms"], second["goodput_per_s"]) == (0, None, 0.0)
    json.dumps(result, allow_nan=False)


def test_latency_is_compared_with_one_at_a_time_round_by_round() -> None:
    """0.1 s against 0.2 s is one half; above capacity there is no figure."""
    plan = Plan(loads=(0.5, 2.0), rounds=2, span_s=2.0)
    capacity = {"deadline": [2.0, 2.0], "one at a time": [1.0, 2.0]}
    runs = [run_of(mode, load, [0.5], {}) for load in plan.loads for mode in capacity for _ in "ab"]
    for run in runs:
        if run.mode == "one at a time":
            run.outcomes.rois = [Outcome(0, False, 0.2, 0.5)]
    (found,) = as_dict(plan, capacity, runs)["latency_of_one_at_a_time"]
    assert found == {"load": 0.5, "p50": pytest.approx(0.5), "p95": pytest.approx(0.5)}


def test_fairness_is_that_of_jain() -> None:
    """Equal shares of unequal demands give 1; one of four that gets all gives a quarter."""
    answered, lost = Outcome(0, False, 0.1, 0.1), Outcome(0, False, 0.1, 0.1, LATE)
    equal = [
        replace(one, edge=edge) for edge, n in ((0, 1), (1, 7)) for one in (answered, lost) * n
    ]
    assert fairness(equal) == pytest.approx(1.0)
    assert fairness([answered, *(replace(lost, edge=edge) for edge in (1, 2, 3))]) == 0.25
    assert fairness([lost]) is None


def test_real_services_answer_reject_or_are_late(tmp_path: Path) -> None:
    arrivals = [Arrival(0.01 * i, i, 2, 20.0) for i in range(3)] + [Arrival(0.05, 0, 3, 0.02)]

    async def offered(address: str) -> Outcomes:
        async with Edges(address, (48, 48, 48), 2) as edges:
            return await edges.send(arrivals)

    with services(tmp_path, program=PROGRAM) as started:
        assert [service.mode for service in started] == list(MODES)
        found = [asyncio.run(offered(service.address)) for service in started]
    for one in found:
        assert (len(one.rois), len(one.in_time), sum(one.lost.values())) == (9, 6, 3)
        assert all(answer.took_s <= 20.0 for answer in one.in_time)
        assert len(one.lag_s) == 4
    assert set(found[0].lost) - {LATE} <= {"DeadlineUnmeetable", "broken off"}


@pytest.mark.parametrize(
    "options", [["--loads", "much"], ["--budgets", "1,-1"], ["--synthetic", "inf,1"]]
)
def test_invalid_numbers_are_refused(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["load", *options])
    assert result.exit_code == 2
    assert options[0] in result.output


def test_traffic_knows_its_mean() -> None:
    assert Traffic().mean_rois == 2.5


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
