import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from edge.amend.amendment import DERIVED, AmendmentContext, amend_report
from edge.audit_sampling import Audit, AuditOutcome
from edge.clinical.sidecar import Clinical
from edge.decide import Plan
from edge.escalation.rois import EscalationResult
from edge.findings import SecondReading
from edge.guarantee import Guarantee
from edge.report.model import Report, Status
from edge.rules.rule import Action, AppliedRule
from imaging.volume import Geometry
from protos.messages import Priority, Verdict
from tests.edge.builders import LISTING, TERMS, THRESHOLDS, WEIGHTS, plan_of
from tests.edge.report.reports import CHANGE, LOCATOR, REPORT

TURNED = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
GEOMETRY = Geometry((1.0, 0.5, 0.25), (-3.0, 4.0, 5.5), TURNED)


def context_of(report: Report, plan: Plan | None = None) -> AmendmentContext:
    """The context of a report, of three candidates if nothing else is said."""
    return AmendmentContext(report, plan or plan_of(0.95, 0.7, 0.3), THRESHOLDS, WEIGHTS, GEOMETRY)


def full_report() -> Report:
    """A report in which every field says something."""
    return dataclasses.replace(
        REPORT,
        source=Path("/inbox/case ü 漢"),
        second_reading=SecondReading.PARTIAL,
        guarantee=Guarantee(TERMS, "1 of 2 were not read", permanent=False),
        audit=Audit(AuditOutcome.CLEAR, 0.05, 0.04, 2, 2),
        version=2,
        changes=(CHANGE,),
        finding_numbers=(1, 4),
        picture_note="note",
        locator=LOCATOR,
        status=Status.PROVISIONAL,
        rule=AppliedRule("lung screening", Action.READ, Priority.STAT, screening=True),
        clinical=Clinical("former", True, False, None, False, "clinical.json"),
    )


def test_every_field_of_a_report_comes_back() -> None:
    report = full_report()
    kept = AmendmentContext.from_bytes(context_of(report).to_bytes()).report
    for field in dataclasses.fields(Report):
        if field.name not in DERIVED:
            assert getattr(kept, field.name) == getattr(report, field.name), field.name
    assert kept.decisions == plan_of(0.95, 0.7, 0.3).decisions


def test_plan_thresholds_and_place_come_back() -> None:
    before = context_of(full_report(), plan_of(1 / 3, math.nextafter(0.7, 1)))
    after = AmendmentContext.from_bytes(before.to_bytes())
    assert after.plan == dataclasses.replace(before.plan, sizes=())
    assert (after.thresholds, after.weights) == (THRESHOLDS, WEIGHTS)
    assert after.geometry.spacing_mm == GEOMETRY.spacing_mm
    assert after.geometry.origin_mm == GEOMETRY.origin_mm
    np.testing.assert_array_equal(after.geometry.direction, TURNED)


def test_text_that_is_no_utf8_and_an_infinite_deadline_can_be_persisted() -> None:
    """Odd bytes of a file name become question marks, as in the report."""
    report = dataclasses.replace(full_report(), source=Path("/in/\udcff"), deadline_s=math.inf)
    kept = AmendmentContext.from_bytes(context_of(report).to_bytes()).report
    assert (kept.source, kept.deadline_s) == (Path("/in/?"), math.inf)


def test_a_candidate_held_back_at_first_counts_as_sent_later() -> None:
    """The reason that a finding gives is that of the last retry, not of the first plan."""
    held = dataclasses.replace(plan_of(0.7, 0.3), send=(), held_back="no time left to ask")
    merged = context_of(full_report(), held).merged(EscalationResult(reason="the link was lost"))
    assert "the link was lost" in merged.findings[0].reason
    verdict = Verdict(0, 0.99, 9.0, "m 1", 0.0, 0.0)
    merged = context_of(full_report(), held).merged(EscalationResult({0: verdict}))
    assert merged.second_reading is SecondReading.PARTIAL


def listing(*scores: float) -> AmendmentContext:
    """The context of a first report without any verdict, with a list of possible findings."""
    plan = plan_of(*scores)
    report = Report(
        "k1", "2026-03-01T10:11:12+00:00", Path("/in/a"), 10.0,
        decisions=plan.decisions, models={"edge": "e 1"},
    )  # fmt: skip
    return AmendmentContext(report, plan, LISTING, WEIGHTS, Geometry())


def amended(context: AmendmentContext, old: dict[int, float], new: dict[int, float]) -> Report:
    """The next version, with the cloud's probability by candidate before and after."""
    before, after = (
        EscalationResult({i: Verdict(i, p, 9.0, "m 1", 0.0, 0.0) for i, p in one.items()})
        for one in (old, {**old, **new})
    )
    return amend_report(
        context, before, after, created="2026-03-02T10:11:12+00:00", open_rois=(), gives_up=False
    )


@pytest.mark.parametrize(
    ("score", "cloud", "kind", "words", "lists"),
    [
        (0.15, 0.5, "read again, no finding", "still no finding", ([], [])),
        (0.15, 0.95, "finding added", "new finding 1", ([1], [])),
        (0.15, 0.7, "possible finding added", "new possible finding 1", ([], [1])),
        (0.6, 0.01, "finding removed", "finding 1 removed", ([], [])),
        (0.7, 0.9, "probability changed", "finding 1", ([1], [])),
        (0.7, 0.3, "finding lowered to possible finding",
         "finding 1 is now a possible finding", ([], [1])),
        (0.3, 0.01, "possible finding removed", "possible finding 1 removed", ([], [])),
        (0.3, 0.6, "probability changed", "possible finding 1", ([], [1])),
        (0.3, 0.9, "possible finding raised to finding",
         "possible finding 1 is now a finding", ([1], [])),
    ],
)  # fmt: skip
def test_a_verdict_moves_a_candidate_between_the_lists(
    score: float, cloud: float, kind: str, words: str, lists: tuple[list[int], list[int]]
) -> None:
    """Every step between no finding, possible finding and finding has its kind and its words."""
    report = amended(listing(score), {}, {0: cloud})
    (change,) = report.changes
    assert change.kind.value == kind
    merged = WEIGHTS.merged(score, cloud, 6.0)
    assert change.text == (
        f"{words}, (0.0, 2.0, 3.0) mm: probability from {score:.2f} to {merged:.2f} "
        f"by the verdict {cloud:.2f} of m 1"
    )
    assert change.number == (None if kind == "read again, no finding" else 1)
    assert (change.probability_before, change.probability_after) == (score, pytest.approx(merged))
    shown = [n for n, _ in report.numbered], [n for n, _ in report.numbered_possible]
    assert shown == lists


def test_a_candidate_keeps_its_number_in_both_lists_and_no_number_is_used_twice() -> None:
    """Of five candidates, in three versions: raised, lowered, removed, added to each list."""
    context = listing(0.8, 0.7, 0.4, 0.3, 0.15, 0.12)
    first = context.merged(EscalationResult())
    assert [round(f.edge_score, 2) for f in first.findings] == [0.8, 0.7]
    assert [round(f.edge_score, 2) for f in first.possible] == [0.4, 0.3]
    two = amended(context, {}, {1: 0.2, 2: 0.9, 4: 0.75})  # lowered, raised, added as possible
    assert {n: round(f.edge_score, 2) for n, f in two.numbered} == {3: 0.4, 1: 0.8}
    assert {n: f.edge_score for n, f in two.numbered_possible} == {2: 0.7, 5: 0.15, 4: 0.3}
    stored = dataclasses.replace(context, report=two).to_bytes()
    old = {1: 0.2, 2: 0.9, 4: 0.75}
    three = amended(AmendmentContext.from_bytes(stored), old, {3: 0.01, 5: 0.95})
    assert {n: f.edge_score for n, f in three.numbered} == {3: 0.4, 1: 0.8, 6: 0.12}
    assert {n: f.edge_score for n, f in three.numbered_possible} == {2: 0.7, 5: 0.15}
    assert [c.number for c in three.changes if c.version == 3] == [4, 6]
