"""Two clouds for the same edges."""

from __future__ import annotations

import pytest

from evaluation.load.replicas import FAULTS, Fault, as_dict, one_fault, two_replicas


@pytest.mark.parametrize("kind", list(FAULTS))
def test_the_end_of_one_replica_costs_no_study(kind: str) -> None:
    with two_replicas(("--fixed-ms", "1", "--each-ms", "2")) as pair:
        fault = one_fault(pair, kind, 6.0, 80.0)
        served = [one.samples()["overread_cloud_rois_total"] for one in pair]
    assert fault.studies > 5
    assert (fault.unanswered, fault.late, fault.new_after) == (0, 0, 0)
    assert min(served) > 0  # the one that came back is used again


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
