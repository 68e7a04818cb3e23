from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from edge.audit_sampling import Audit, AuditOutcome
from edge.budget import LedgerEntry
from edge.escalation.rois import EscalationResult
from edge.findings import SecondReading
from edge.guarantee import Guarantee
from edge.link.estimate import OFF
from edge.merge import merge
from edge.report.compose import completed
from edge.report.model import Rejection, Report, Status
from edge.report.terminal import render_report
from edge.report.write import ReportPaths
from imaging.location import Locator
from imaging.volume import Geometry, ImageRef
from protos.messages import Verdict
from tests.edge.builders import TERMS, THRESHOLDS, WEIGHTS, plan_of

PATHS = ReportPaths(Path("out/report.json"), Path("out/report.html"))


def printed(report: Report, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(render_report(completed(report), PATHS))
    return console.export_text()


def study(**fields: object) -> Report:
    """A report of one reported, one read again, and one dismissed candidate."""
    plan = plan_of(0.95, 0.5, 0.05)
    answers = EscalationResult({1: Verdict(1, 0.9, 8.0, "fake 1", 0.0, 0.0)})
    merged = merge(plan, answers, THRESHOLDS, WEIGHTS, Geometry())
    given: dict[str, Any] = {
        "findings": merged.findings,
        "decisions": plan.decisions,
        "second_reading": merged.second_reading,
        "second_reading_reason": merged.reason,
        "ledger": (LedgerEntry("read", 10.0, 0.25),),
        **fields,
    }
    return Report("key", "2026-01-01T00:00:00+00:00", Path("study"), 10.0, **given)


def test_each_finding_has_centre_scores_and_reason_and_the_ledger_its_deadline() -> None:
    """All of it fits a terminal of 80 columns."""
    lines = printed(study()).splitlines()
    (row,) = [line for line in lines if "│ 2 │" in line]
    cells = ["2", "1.0, 2.0, 3.0", "8.0", "0.90", "0.50", "0.90", "cloud"]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == cells
    assert "2  the cloud raised 0.50 to 0.90, at or above the threshold 0.50" in lines
    assert any("0.25 s of 10.00 s" in line for line in lines)
    assert any("│ read  │   10.000 │  0.250 │" in line for line in lines)


def test_findings_below_6_mm_are_marked_in_one_table() -> None:
    small = replace(study().findings[0], diameter_mm=5.96)
    lines = printed(study(findings=(small, study().findings[1]))).splitlines()
    assert any("2 findings of 3 candidates" in line for line in lines)
    (marked,) = [line for line in lines if "6.0*" in line]
    assert "│ 1 │" in marked
    assert any("* below 6 mm" in line for line in lines)
    assert "*" not in printed(study())


def test_possible_findings_are_a_table_of_their_own() -> None:
    possible = replace(study().findings[1], diameter_mm=4.0, probability=0.21, reason="lowered")
    lines = printed(study(possible=(possible,))).splitlines()
    assert any("2 findings of 3 candidates" in line for line in lines)
    (title,) = [i for i, line in enumerate(lines) if line.strip() == "1 possible finding"]
    (row,) = [i for i, line in enumerate(lines) if "│ 3 │" in line]
    assert title < row
    assert "4.0*" in lines[row]
    assert "3  lowered" in lines
    assert any("below the threshold of findings; most are not nodules" in one for one in lines)
    assert "possible" not in printed(study())


def test_possible_findings_alone_are_shown_below_no_finding() -> None:
    text = printed(study(findings=(), possible=(study().findings[1],)))
    assert "no findings of 3 candidates" in text
    assert "1 possible finding" in text


def test_the_reason_of_a_finding_begins_with_its_location() -> None:
    axes = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    locator = Locator((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), axes, 9, tuple(map(ImageRef, range(9))))
    said = printed(study(locator=locator))
    assert "2  image 3: the cloud raised 0.50 to 0.90, at or above the threshold 0.50" in said


def test_the_second_reading_is_said_in_words() -> None:
    said = printed(study(), width=200)
    assert "second reading  complete: 1 of 1 uncertain candidates were read again" in said
    off = study(second_reading=SecondReading.OFF, second_reading_reason=OFF.reason)
    assert "second reading  edge only: no second reader is configured" in printed(off)
    decided = study(decisions=plan_of(0.95).decisions, second_reading_reason="nothing uncertain")
    assert "second reading  not needed: nothing uncertain" in printed(decided)


def test_guarantee_and_audit_are_printed() -> None:
    audit = Audit(AuditOutcome.CLEAR, 0.05, 0.09, 3, 2, reason="DeadlinePassed: late")
    text = " ".join(printed(study(guarantee=Guarantee(TERMS, ""), audit=audit)).split())
    assert f"guarantee {TERMS.text}" in text
    assert (
        "audit no candidate was uncertain, the highest dismissed score is 0.090; sampled, 2 of 3 "
        "dismissed candidates were read again, 0 of them confirmed: DeadlinePassed: late"
    ) in text
    idle = Audit(AuditOutcome.NOT_SAMPLED, 0.05, 0.09)
    assert "not sampled (rate 5 %)" in printed(study(audit=idle), width=200)
    assert "audit" not in printed(study())


def test_header_text_is_no_markup() -> None:
    assert "[bold]series 3[/]" in printed(study(other_series=("[bold]series 3[/]",)))


def test_refusal_says_kind_reason_and_file() -> None:
    rejection = Rejection("NotCt", "the modality is MR", "a/b.dcm")
    text = printed(study(status=Status.REJECTED, rejection=rejection))
    for said in ("Refused: NotCt", "the modality is MR", "a/b.dcm"):
        assert said in text
