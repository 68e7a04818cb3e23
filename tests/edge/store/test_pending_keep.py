from __future__ import annotations

from dataclasses import replace

from edge.escalation.rois import EscalationResult
from edge.findings import SecondReading
from edge.merge import merge
from edge.selection import SELECTION_POLICY
from edge.store.pending import pending_candidates
from imaging.volume import Geometry
from protos.messages import Verdict
from tests.edge.cases import THRESHOLDS, WEIGHTS, plan_of


def verdict(roi_id: int) -> Verdict:
    """A verdict on one region."""
    return Verdict(roi_id, 0.75, 9.0, "m 1", 0.0, 0.001)


def test_what_was_wanted_and_did_not_come_is_owed() -> None:
    """Sent and unanswered first, then what was held back; dismissed and reported ones never."""
    plan = replace(plan_of(0.95, 0.3, 0.7, 0.4, 0.05), send=(2, 3, 0), later=(1,))
    assert pending_candidates(plan, EscalationResult({2: verdict(2)})) == (3, 1)
    assert pending_candidates(plan, EscalationResult()) == (2, 3, 1)


def test_descriptions_are_owed_where_nothing_else_was_wanted() -> None:
    """Then the report says that the second reading is missing, and it comes later."""
    plan = plan_of(0.95, 0.05, 0.97)
    assert pending_candidates(plan, EscalationResult(reason="Unreachable: nobody listens")) == (
        2,
        0,
    )
    assert pending_candidates(plan, EscalationResult({0: verdict(0)})) == ()


def test_what_nobody_wants_described_is_not_owed() -> None:
    """A report without anything uncertain is complete then, with the cloud dead too."""
    plan = plan_of(0.95, 0.05, 0.97, policy=replace(SELECTION_POLICY, characterize=False))
    answers = EscalationResult(reason="Unreachable: nobody listens")
    assert (plan.send, pending_candidates(plan, answers)) == ((), ())
    merged = merge(plan, answers, THRESHOLDS, WEIGHTS, Geometry())
    assert merged.second_reading is SecondReading.COMPLETE
    assert len(merged.findings) == 2


def test_an_audit_that_is_answered_does_not_stand_for_the_description() -> None:
    """What is reported and not described is owed, though the audited place has its verdict."""
    plan = replace(plan_of(0.95, 0.05), send=(1, 0), audit=(1,))
    answers = EscalationResult({1: verdict(1)}, reason="DeadlinePassed: too slow")
    merged = merge(plan, answers, THRESHOLDS, WEIGHTS, Geometry())
    assert merged.second_reading is SecondReading.MISSING
    assert pending_candidates(plan, answers) == (0,)
    assert pending_candidates(plan, EscalationResult({0: verdict(0)})) == ()


def test_an_audit_of_a_scan_without_findings_owes_nothing() -> None:
    """Answered or not, there is nothing to describe."""
    plan = replace(plan_of(0.08, 0.05), send=(0, 1), audit=(0, 1))
    for answers in (
        EscalationResult({0: verdict(0)}),
        EscalationResult(reason="Unreachable: lost"),
    ):
        merged = merge(plan, answers, THRESHOLDS, WEIGHTS, Geometry())
        assert merged.second_reading is SecondReading.COMPLETE
        assert pending_candidates(plan, answers) == ()


def test_a_site_without_a_cloud_owes_nothing() -> None:
    """What nobody was to read is not missing."""
    assert pending_candidates(plan_of(0.7, 0.3), EscalationResult(switched_off=True)) == ()
