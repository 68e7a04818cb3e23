"""What a report guarantees of missed nodules, and why it guarantees nothing."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from edge.decide import Plan
from edge.errors import UnfitModel
from edge.escalation.client import NoSecondReader
from edge.escalation.rois import EscalationResult
from edge.guarantee import (
    NOT_CALIBRATED,
    Guarantee,
    Terms,
    amended_guarantee,
    guarantee_of,
    guarantee_of_model,
)
from edge.selection import Size
from models.runtime.artifacts import every
from protos.messages import Verdict
from tests.edge.builders import GUARANTEE, TERMS, pipeline_of, plan_of, report_of
from tests.edge.fake_cloud import FakeCloud, escalator

PROMISED_GUARANTEE = Guarantee(TERMS, "", permanent=False)
NONE = "No guarantee for this scan"
TEXT = (
    "With 90 % confidence, the findings miss at most 10 % of nodules, and findings and possible "
    "findings together at most 5 %, on average over patients, provided that nodules are as easy to "
    "find as those of calibration (62 patients; nodules inserted into whole scans)."
)


def verdict(place: int, model: str = "fake 1") -> Verdict:
    return Verdict(place, 0.9, 9.0, model, 0.0, 0.001)


def read_by(*places: int, model: str = "fake 1") -> EscalationResult:
    return EscalationResult({i: verdict(i, model) for i in places}, reason="DeadlinePassed: late")


def of(plan: Plan, answers: EscalationResult) -> Guarantee:
    return guarantee_of(PROMISED_GUARANTEE, plan, answers)


def test_rois_of_another_side_have_no_guarantee() -> None:
    assert of(plan_of(0.95), EscalationResult()) == PROMISED_GUARANTEE
    settings = {"guarantee": {**GUARANTEE, "region_side": 32}}
    small = guarantee_of_model(settings, TERMS.screening)
    assert small.text == f"{NONE}: ROIs have 48 voxels a side, in calibration they had 32."
    assert guarantee_of(small, plan_of(0.95), EscalationResult()) == small


def test_terms_come_from_the_manifest() -> None:
    assert Terms.from_manifest({"guarantee": GUARANTEE}) == TERMS
    assert Terms.from_manifest({}) is None
    assert guarantee_of_model({}, "1") == NOT_CALIBRATED
    assert NOT_CALIBRATED.text == f"{NONE}: the model has no calibrated guarantee."


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("alpha", 1.5, "alpha = 1.5 is out of range"), ("delta", 0.0, "delta = 0.0"),
        ("delta", math.nan, "delta = nan"), ("patients", 62.5, "patients = 62.5"),
        ("patients", True, "patients = True"), ("calibration", "", "calibration = ''"),
        ("contrast", "yes", "contrast = 'yes'"), ("contrast", 1, "contrast = 1"),
        ("alpha_findings", 0.04, "alpha 0.05 is above alpha_findings 0.04"),
        ("alpha_findings", "0.7", "alpha_findings = '0.7'"), ("slice_mm", -1, "slice_mm = -1"),
        ("kernels", "BONE", "kernels = 'BONE'"), ("min_age", -1, "min_age = -1"),
        ("beta", 1, "beta: missing or unknown"), ("patients", None, "patients: missing or unknown"),
    ],
)  # fmt: skip
def test_malformed_terms_are_refused(key: str, value: object, says: str) -> None:
    table = {name: one for name, one in {**GUARANTEE, key: value}.items() if one is not None}
    with pytest.raises(UnfitModel, match=says):
        Terms.from_manifest({"guarantee": table})
    with pytest.raises(UnfitModel, match="must hold a table"):
        Terms.from_manifest({"guarantee": says})


def test_a_model_that_was_not_calibrated_has_no_guarantee() -> None:
    """Weights that were exported again keep their settings, and lose the guarantee."""
    assert guarantee_of_model({"guarantee": GUARANTEE}, TERMS.screening) == PROMISED_GUARANTEE
    stale = guarantee_of_model({"guarantee": GUARANTEE}, "2")
    used = f"calibration used version {TERMS.screening} of the model, not 2"
    assert stale.text == f"{NONE}: {used}."
    assert guarantee_of(stale, plan_of(0.95), EscalationResult()) == stale


def test_the_guarantee_is_one_sentence_and_nothing_is_detailed_where_it_is_not_given() -> None:
    assert TEXT.count(".") == 1
    assert "read nodules inserted into whole scans" in " ".join(Guarantee(TERMS, "").details)
    assert Guarantee(TERMS, "slices are too thick").details == ()


def test_the_guarantee_that_is_shipped_was_calibrated_in_whole_lungs() -> None:
    shipped = [Terms.from_manifest(artifact.settings) for artifact in every().values()]
    assert sum(terms is not None for terms in shipped) == 4
    for terms in filter(None, shipped):
        assert "whole scans" in terms.text
        assert terms.alpha < terms.alpha_findings


def test_the_guarantee_waits_for_the_last_verdict() -> None:
    plan = plan_of(0.7, 0.3)
    first = of(plan, read_by(0))
    unread = "1 of 2 uncertain candidates were not read again"
    assert first.text == f"{NONE}: {unread}: DeadlinePassed: late."
    assert not first.given
    assert amended_guarantee(first, plan, EscalationResult({0: verdict(0)})).reason == unread
    assert amended_guarantee(first, plan, read_by(0, 1)) == PROMISED_GUARANTEE


def test_candidates_held_back_name_the_limit() -> None:
    found = of(plan_of(0.7, 0.3, max_rois=1), EscalationResult({0: verdict(0)}))
    assert "not read again: the limit per study is 1" in found.text


def test_another_second_reader_has_no_guarantee() -> None:
    found = of(plan_of(0.7), read_by(0, model="other 2"))
    assert found.reason == "the second reader was other 2, in calibration version fake 1"


@pytest.mark.parametrize("size", [Size.REDUCED, Size.SLAB])
def test_smaller_rois_withdraw_the_guarantee_for_good(size: Size) -> None:
    """A verdict on a smaller region than calibration's is no such verdict, however many follow."""
    plan = replace(plan_of(0.7, 0.3), sizes=(Size.FULL, size))
    found = of(plan, read_by(0, 1))
    assert found.reason == "1 of 2 ROIs were smaller than in calibration"
    assert amended_guarantee(found, plan, read_by(0, 1)) == found
    unanswered = of(plan, read_by(plan.send[0]))
    assert amended_guarantee(unanswered, plan, read_by(0, 1)) == PROMISED_GUARANTEE


def test_the_report_carries_the_terms_from_end_to_end(tmp_path: Path) -> None:
    with FakeCloud() as cloud, escalator(cloud.address, reserve_s=2.0) as second:
        report = report_of(pipeline_of(second, guarantee=GUARANTEE), tmp_path)
    assert report.guarantee.text == TEXT
    written = json.loads((tmp_path / "report.json").read_text())
    terms = {
        "missed_at_most": 0.05, "missed_by_findings_at_most": 0.1, "confidence": 0.9,
        "patients": 62, "calibration": "0123abcd", "basis": "nodules inserted into whole scans",
        "edge_model": TERMS.screening, "cloud_model": "fake 1", "slice_mm": 2.5, "roi_side": 48,
    }  # fmt: skip
    assert written["guarantee"] == {"given": True, "text": TEXT, "reason": "", "terms": terms}
    assert TEXT in (tmp_path / "report.html").read_text()


def test_no_term_stands_beside_a_guarantee_that_is_not_given(tmp_path: Path) -> None:
    report = report_of(pipeline_of(NoSecondReader(), guarantee=GUARANTEE), tmp_path)
    reason = "no second reader is configured"
    text = f"{NONE}: {reason}."
    assert report.guarantee.text == text
    written = json.loads((tmp_path / "report.json").read_text())
    nothing = {"given": False, "text": text, "reason": reason, "terms": None}
    assert written["guarantee"] == nothing
    assert text in (tmp_path / "report.html").read_text()
