"""The random sample of scans without anything to ask about."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edge.audit_sampling import Audit, AuditOutcome, audit_of, is_sampled
from edge.decide import Plan
from edge.escalation.rois import EscalationResult
from edge.findings import SecondReading
from edge.link.estimate import OFF, LinkEstimate, Pace
from edge.merge import merge
from edge.report.model import Status
from imaging.volume import Geometry
from protos.messages import Refusal, Roi, Verdict
from tests.edge import builders
from tests.edge.builders import THRESHOLDS, WEIGHTS, pipeline_of, report_of
from tests.edge.fake_cloud import FakeCloud, escalator, sure

KEYS = [f"{number:032x}" for number in range(4000)]


def test_the_sample_has_the_size_of_its_rate() -> None:
    """The key decides: a higher rate includes every study of a lower one."""
    samples = [{key for key in KEYS if is_sampled(key, rate)} for rate in (0.0, 0.1, 0.4, 1.0)]
    assert (samples[0], samples[3]) == (set(), set(KEYS))
    assert 340 <= len(samples[1]) <= 460
    assert samples[1] < samples[2]


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        is_sampled("k", rate)


FAINT = (0.02, 0.09, 0.05, 0.08, 0.01)
"""Candidates below ``dismiss``, and no others."""


plan_of = partial(builders.plan_of, audited=True)


def answers_of(*probabilities: float, to: Plan) -> EscalationResult:
    """Verdicts on the places that ``to`` audits, in their order."""
    pairs = zip(to.audit, probabilities, strict=False)
    return EscalationResult({i: Verdict(i, p, 7.0, "fake 1", 0.0, 0.001) for i, p in pairs})


THIN = LinkEstimate.steady(Pace(0.1, 100_000, 1e6, queue_s=0.0, roi_s=0.02))


@pytest.mark.parametrize(
    ("scores", "situation", "send", "audit"),
    [
        ((*FAINT, 0.5), {}, (5,), ()),  # a candidate is uncertain
        ((0.95, 0.05), {}, (0, 1), (1,)),  # those to characterize come first
        ((0.95, 0.05), {"max_rois": 1}, (0,), ()),
        (FAINT, {"link": THIN, "budget_s": 1.5}, (1,), (1,)),
        (FAINT, {"link": OFF}, (), ()),
    ],
)
def test_an_audit_keeps_to_the_budget_and_to_scans_without_uncertain_candidates(
    scores: tuple[float, ...],
    situation: dict[str, Any],
    send: tuple[int, ...],
    audit: tuple[int, ...],
) -> None:
    plan = plan_of(*scores, **situation)
    assert (plan.send, plan.audit) == (send, audit)


def test_findings_that_an_audit_added_are_counted_in_what_was_read_again() -> None:
    """Not "the cloud measured 1 of 1 findings" beside three of them."""
    plan = plan_of(0.95, *FAINT)
    verdicts = {0: Verdict(0, 0.9, 7.0, "fake 1", 0.0, 0.001)}
    verdicts |= answers_of(0.97, 0.9, to=plan).verdicts
    result = merge(plan, EscalationResult(verdicts), THRESHOLDS, WEIGHTS, Geometry())
    assert len(result.findings) == 3
    assert result.reason == (
        "no candidate was uncertain; the cloud measured 1 of 1 findings of the edge; "
        "an audit added 2 findings of the cloud"
    )


def test_outcome_and_counts_of_an_audit() -> None:
    plan = plan_of(*FAINT)

    def of(plan: Plan, answers: EscalationResult, sampled: bool = True) -> Audit | None:
        return audit_of(plan, answers, THRESHOLDS, rate=0.05, sampled=sampled)

    hit, clear = answers_of(0.97, 0.1, 0.2, to=plan), answers_of(0.1, to=plan)
    lost = EscalationResult(reason="Unreachable: lost")
    assert of(plan, hit) == Audit(AuditOutcome.CONFIRMED, 0.05, 0.09, 3, 3, 1)
    assert of(plan, clear) == Audit(AuditOutcome.CLEAR, 0.05, 0.09, 3, 1, 0)
    unanswered = Audit(AuditOutcome.UNANSWERED, 0.05, 0.09, 3, reason=lost.reason)
    assert of(plan, lost) == unanswered
    again = "sampled, 0 of 3 dismissed candidates were read again: Unreachable: lost"
    assert unanswered.text.endswith(f"the highest dismissed score is 0.090; {again}")
    nothing = Audit(AuditOutcome.NOTHING, 0.05, 0.0)
    assert of(plan_of(), EscalationResult()) == nothing
    assert nothing.text == "sampled, but there was no candidate to send"
    unsampled = of(replace(plan, send=(), audit=()), EscalationResult(), sampled=False)
    assert unsampled == Audit(AuditOutcome.NOT_SAMPLED, 0.05, 0.09)
    assert of(plan_of(0.5), EscalationResult()) is None


def second_only(roi: Roi) -> Verdict | Refusal:
    """Calls the candidate with the second highest edge score a nodule, and no other."""
    verdict = sure(roi)
    return verdict if abs(roi.edge_score - 0.08) < 1e-3 else replace(verdict, probability=0.02)


def test_an_audit_from_end_to_end(tmp_path: Path) -> None:
    with FakeCloud(second_only) as cloud, escalator(cloud.address, reserve_s=2.0) as second:
        report = report_of(pipeline_of(second, FAINT, cloud__audit_rate=1.0), tmp_path)
    assert cloud.asked == [[1, 3, 2]]
    assert (report.status, report.second_reading) == (Status.FINAL, SecondReading.COMPLETE)
    written = json.loads((tmp_path / "report.json").read_text())
    counts = {"sent": 3, "read": 3, "confirmed": 1}
    said = {"outcome": "confirmed", "rate": 1.0, "highest_score": 0.09, "reason": ""}
    assert written["audit"] == said | counts
    (finding,) = written["findings"]
    assert finding["reason"].startswith("audit: the edge dismissed it with 0.08; the cloud gives")
    words = "sampled, 3 of 3 dismissed candidates were read again, 1 of them confirmed"
    assert words in (tmp_path / "report.html").read_text()
