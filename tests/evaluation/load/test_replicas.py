"""Two clouds for the same edges."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from evaluation.load import replicas
from evaluation.load.replicas import (
    FAULTS,
    ROIS,
    Fault,
    Replica,
    address_of,
    as_dict,
    one_fault,
    send_studies,
    two_replicas,
)
from tests.cloud.running import until


@pytest.mark.parametrize("kind", list(FAULTS))
def test_the_end_of_one_replica_costs_no_study(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "BUDGET_S", 120.0)
    stop = threading.Event()
    with two_replicas(("--fixed-ms", "1", "--each-ms", "2")) as pair, ThreadPoolExecutor(2) as pool:
        senders = [pool.submit(send_studies, address_of(pair), 0.1, stop) for _ in range(2)]
        try:
            until(lambda: min(map(served, pair)) > 0)
            FAULTS[kind](pair[0])
            before = served(pair[1])
            until(lambda: served(pair[1]) > before)
            pair[0].cloud.start()
            pair[0].cloud.wait()
            until(lambda: served(pair[0]) > 0)  # the one that came back is used again
        finally:
            stop.set()
        answered = [verdicts for sender in senders for verdicts, _ in sender.result()]
    assert set(answered) == {ROIS}


def served(replica: Replica) -> float:
    """How many ROIs it has answered since its start."""
    return replica.samples()["overread_cloud_rois_total"]


def test_a_fault_is_measured_while_studies_are_sent() -> None:
    with two_replicas(("--fixed-ms", "1", "--each-ms", "2")) as pair:
        fault = one_fault(pair, "SIGKILL", 0.3, 80.0)
    assert (fault.fault, fault.new_after) == ("SIGKILL", 0)
    assert 0 <= fault.unanswered <= fault.studies


def test_one_unanswered_study_misses_the_bar() -> None:
    capacity = {"one": [60.0, 64.0], "both": [120.0, 128.0]}
    sound = [Fault(kind, 10, 0, 0, 0, 0.5) for kind in FAULTS]
    result = as_dict(capacity, [0.95, 0.93], sound)
    assert result["met"]
    assert result["ratio"] == pytest.approx(2.0)
    assert [one["studies"] for one in result["faults"]] == [10, 10]
    for worse in (Fault("SIGKILL", 10, 1, 0, 0, 0.5), Fault("SIGTERM", 10, 0, 0, 1, 0.5)):
        assert not as_dict(capacity, [0.95, 0.93], [*sound, worse])["met"]
    assert not as_dict(capacity, [0.8, 0.8], sound)["met"]
