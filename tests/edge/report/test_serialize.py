import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.audit_sampling import Audit, AuditOutcome
from edge.clinical.sidecar import Clinical
from edge.guarantee import UNREAD, Guarantee
from edge.report.model import Change, ChangeKind, Rejection, Report, Status
from edge.report.page import render_page
from edge.report.serialize import NotAReport, read_report, report_from_dict, report_to_dict
from edge.rules.rule import Action, AppliedRule
from imaging.acquisition import Acquisition
from imaging.coverage import Coverage, Cut
from imaging.volume import Limitation, LimitationKind
from protos.messages import Priority
from tests.edge.builders import TERMS
from tests.edge.report.reports import CHANGE, FINDING, LOCATOR, POSSIBLE, REPORT, page, values_of


def test_a_finding_names_image_side_and_zone() -> None:
    report = replace(REPORT, locator=LOCATOR)
    (finding,) = values_of(report)["findings"]
    assert finding["location"] == {
        "image_number": 56,
        "frame_number": None,
        "sop_instance_uid": "1.2.3.56",
        "frame_of_reference_uid": "1.2.9",
        "slice_index": 1,
        "side": "right",
        "zone": "upper",
    }
    assert "right upper zone, image 56" in page(report)


def test_what_the_files_do_not_state_of_a_location_is_null() -> None:
    bare = replace(LOCATOR, images=(), frame_of_reference_uid="", between=(), zones=None)
    (finding,) = values_of(replace(REPORT, locator=bare))["findings"]
    known = {key: value for key, value in finding["location"].items() if value is not None}
    assert known == {"slice_index": 1}
    assert "slice 2 of 2 from the feet" in page(replace(REPORT, locator=bare))
    assert values_of(REPORT)["findings"][0]["location"] is None


def test_json_says_nothing_that_is_no_json() -> None:
    odd = replace(FINDING, diameter_mm=float("nan"), verdict=None)
    values = values_of(replace(REPORT, findings=(odd,), deadline_s=float("inf")))
    assert values["findings"][0]["diameter_mm"] is None
    assert values["findings"][0]["verdict"] is None
    assert values["deadline_s"] is None
    json.dumps(values, allow_nan=False)


FULL = replace(
    REPORT,
    version=2,
    findings=(FINDING, replace(FINDING, volume_mm3=985.1)),
    possible=(POSSIBLE, replace(POSSIBLE, verdict=None)),
    finding_numbers=(4, 1, 2, 3),
    locator=LOCATOR,
    coverage=Coverage(212.5, (Cut("apex", 12.5),)),
    acquisition=Acquisition(-1000.0, None, 12.5),
    limitations=(Limitation(LimitationKind.DIFFUSE, "Much is opaque."),),
    guarantee=Guarantee(TERMS, ""),
    audit=Audit(AuditOutcome.CLEAR, 0.05, 0.04, 1, 1),
    changes=(CHANGE, Change(2, ChangeKind.GIVEN_UP, "not read again")),
    rule=AppliedRule("lung screening", Action.READ, Priority.STAT, screening=True),
    clinical=Clinical("never", emphysema=True, source="clinical.json"),
    status=Status.PROVISIONAL,
)
REFUSED = replace(
    REPORT,
    findings=(),
    decisions=(),
    status=Status.REJECTED,
    rejection=Rejection("NoLung", "there is none", "a.dcm"),
    guarantee=UNREAD,
)


def stored(report: Report) -> Any:
    return json.loads(json.dumps(values_of(report)))


@pytest.mark.parametrize("report", [REPORT, FULL, REFUSED], ids=["plain", "full", "refused"])
def test_what_was_written_is_a_report_again(report: Report) -> None:
    again = report_from_dict(stored(report))
    assert json.loads(json.dumps(report_to_dict(again))) == stored(report)
    assert again.status is report.status
    assert render_page(again, {}) == page(report)
    assert [n for n, _ in again.listed] == [n for n, _ in report.listed]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: [], "expected a report"),
        (lambda v: {**v, "schema": "other/1"}, "not of Overread"),
        (lambda v: {**v, "schema": "overread.report/2"}, "report/2, this version reads .*report/1"),
        (lambda v: {**v, "findings": None}, "damaged: TypeError"),
        (lambda v: {n: x for n, x in v.items() if n != "candidates"}, "damaged: KeyError 'cand"),
        (lambda v: {**v, "status": "odd"}, "damaged: status: Input should be 'final', 'provis"),
        (lambda v: {**v, "deadline_s": "Doe^Jane"}, "damaged: deadline_s: [^^]*$"),
    ],
)
def test_what_is_no_report_is_refused_with_the_field_at_fault(
    change: Callable[[Any], Any], says: str, tmp_path: Path
) -> None:
    """No value is told: it may be of the patient."""
    file = tmp_path / "report.json"
    file.write_text(json.dumps(change(stored(FULL))))
    with pytest.raises(NotAReport, match=f"^report.json: .*{says}"):
        read_report(file)


def test_a_file_that_is_no_json_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"{")
    with pytest.raises(NotAReport, match=r"report\.json is damaged"):
        read_report(tmp_path / "report.json")
