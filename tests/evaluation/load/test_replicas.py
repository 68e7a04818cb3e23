"""Two clouds for the same edges."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from evaluation.load import replicas
from evaluation.load.load import SCENARIOS, load
from evaluation.load.replicas import (
    FAULTS,
    ROIS,
    Fault,
    address_of,
    figures,
    one_fault,
    send_studies,
)
from evaluation.load.services import services
from evaluation.sleeping_cloud import program
from evaluation.world import Cloud
from tests.cloud.running import until

PAIR = SCENARIOS["replicas"].services


@pytest.mark.long
@pytest.mark.parametrize("kind", list(FAULTS))
def test_the_end_of_one_replica_costs_no_study(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "BUDGET_S", 120.0)
    stop = threading.Event()
    with services(PAIR, program(1, 2)) as started, ThreadPoolExecutor(2) as pool:
        pair = [one.clouds[0] for one in started]
        senders = [pool.submit(send_studies, address_of(pair), 0.1, stop) for _ in range(2)]
        try:
            until(lambda: min(map(served, pair)) > 0)
            FAULTS[kind](pair[0])
            before = served(pair[1])
            until(lambda: served(pair[1]) > before)
            pair[0].start()
            pair[0].wait()
            until(lambda: served(pair[0]) > 0)  # the one that came back is used again
        finally:
            stop.set()
        answered = [verdicts for sender in senders for verdicts, _ in sender.result()]
        fault = one_fault(pair, "SIGKILL", 0.3, 80.0)
    assert set(answered) == {ROIS}
    assert (fault["fault"], fault["new_after"]) == ("SIGKILL", 0)
    assert 0 <= fault["unanswered"] <= fault["studies"]


def served(cloud: Cloud) -> float:
    """How many ROIs it has answered since its start."""
    return cloud.samples()["overread_cloud_rois_total"]


def test_one_unanswered_study_misses_the_bar() -> None:
    capacity = {"one": [60.0, 64.0], "both": [120.0, 128.0]}
    none = {"studies": 10, "unanswered": 0, "late": 0, "new_after": 0, "longest_s": 0.5}
    sound = [{"fault": kind, **none} for kind in FAULTS]

    def met(goodput: float, *faults: Fault) -> bool:
        result = figures(capacity, [goodput, goodput], [*sound, *faults]) | {"where": "here"}
        return all(bar.met for bar in load.bars(result))

    result = figures(capacity, [0.95, 0.93], sound)
    assert result["ratio"] == pytest.approx(2.0)
    assert [one["studies"] for one in result["faults"]] == [10, 10]
    assert met(0.94)
    assert not met(0.8)
    assert not met(0.94, {**sound[1], "unanswered": 1})
    assert not met(0.94, {**sound[0], "new_after": 1})
