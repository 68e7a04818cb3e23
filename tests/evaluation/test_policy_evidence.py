"""What the cases say of second readings."""

from __future__ import annotations

from dataclasses import replace

from edge.decide import Thresholds
from evaluation.policy_evidence import alarms, evidence
from tests.evaluation.made_cases import THRESHOLDS, made_cases
from tests.evaluation.test_policy_routes import STUDY


def test_verdicts_are_counted_by_what_they_change() -> None:
    """At .3 alone one alarm goes and one nodule comes; asked about are .2 to .5, not .1 and .9."""
    told = evidence([STUDY], THRESHOLDS)
    assert told["asked"] == {
        "nodules": {"candidates": 2, "taken_away": 0, "brought_back": 1},
        "false": {"candidates": 1, "taken_away": 1, "brought_back": 0},
    }
    assert (told["auc_edge"], told["auc_both"]) == (4 / 6, 1.0)
    narrow = Thresholds(0.45, 0.55, 0.45, 0.5)
    assert evidence([STUDY], narrow)["asked"]["nodules"]["candidates"] == 0


def test_alarms_are_those_of_the_scan_itself() -> None:
    """Not its nodule, and nothing that is ignored."""
    cases = made_cases()
    told = alarms(cases, "test")
    assert set(told) == {"test scan 0", "test scan 1"}
    scan = cases.of("test")[0]
    expected = [one for one in scan.sightings if one.score >= 0.3 and not one.nodule]
    assert told["test scan 0"] == len(expected) > 0
    quiet = replace(scan, sightings=tuple(replace(one, ignored=True) for one in scan.sightings))
    assert alarms(replace(cases, pieces=(quiet,)), "test") == {"test scan 0": 0}
