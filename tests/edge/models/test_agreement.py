"""How far two models agree, in one study and over many."""

from dataclasses import replace

import pytest

from edge.decide import Thresholds
from edge.findings import DecidedBy, Finding, Route
from edge.models.agreement import Agreement, Compared, Reading, agreement_of, compare
from models.runtime.detection import Candidate

THRESHOLDS = Thresholds(possible=0.5, finding=0.5, dismiss=0.1, report=0.9)
STRICT = Thresholds(possible=0.7, finding=0.7, dismiss=0.5, report=0.95)
SAME = Compared(2, 2, 0, 3, 3, 5, 0.1, 0.4, 1.0, 1.2)


def at(x: float, score: float, diameter_mm: float = 6.0) -> Candidate:
    return Candidate((x, 0.0, 0.0), (0.0, 0.0, x), diameter_mm, score)


def finding(x: float, diameter_mm: float = 6.0) -> Finding:
    where = (x, 0.0, 0.0)
    return Finding(where, diameter_mm, 0.9, 0.9, DecidedBy.EDGE, "", where, Route.REPORT)


def test_a_finding_is_kept_where_the_new_model_reports_or_sends_it() -> None:
    """Near is within 5 mm, or half of the larger diameter."""
    before = [at(0, 0.95), at(100, 0.95), at(200, 0.95)]
    after = [at(3, 0.99), at(108, 0.6, 20.0), at(200, 0.2)]
    findings = [finding(0), finding(100), finding(200)]
    seen = compare(findings, Reading(before, THRESHOLDS, 1.0), Reading(after, STRICT, 2.0))
    assert (seen.findings, seen.kept, seen.added) == (3, 2, 0)
    assert (seen.regions_before, seen.regions_after) == (0, 1)


def test_what_only_the_new_model_reports_is_counted() -> None:
    """Not where the active one sends a candidate at this place."""
    before = [at(0, 0.3), at(100, 0.05)]
    after = [at(0, 0.97), at(100, 0.97), at(200, 0.97), at(300, 0.94)]
    seen = compare([], Reading(before, THRESHOLDS, 1.0), Reading(after, STRICT, 1.0))
    assert seen.added == 2


def test_logits_are_compared_at_candidates_that_one_of_both_puts_forward() -> None:
    before = [at(0, 0.5), at(100, 0.01), at(200, 0.2)]
    after = [at(1, 0.7310586), at(100, 0.02), at(200, 0.2), at(300, 0.8)]
    seen = compare([], Reading(before, THRESHOLDS, 1.0), Reading(after, STRICT, 1.0))
    assert seen.pairs == 2
    assert seen.logit_median == pytest.approx(0.5, abs=1e-3)
    assert seen.logit_p95 == pytest.approx(0.95, abs=1e-3)


def test_two_readings_without_candidates_agree() -> None:
    seen = compare([], Reading([], THRESHOLDS, 1.0), Reading([], STRICT, 1.0))
    assert seen == Compared(0, 0, 0, 0, 0, 0, None, None, 1.0, 1.0)


def test_studies_are_put_together() -> None:
    seen = agreement_of([SAME, replace(SAME, findings=0, kept=0, added=1, after_s=3.0)])
    assert (seen.studies, seen.kept_share, seen.added) == (2, 1.0, 0.5)
    assert seen.time_ratio == pytest.approx(2.1)
    assert agreement_of([]) == Agreement()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"studies": 19}, "19 studies were compared, expected 20"),
        ({"kept": 0, "findings": 0, "kept_share": None}, "no study with a finding"),
        ({"kept": 94, "findings": 100, "kept_share": 0.94}, "94 of 100 findings (94 %)"),
        ({"added": 0.6}, "0.6 findings a study of its own"),
        ({"regions_after": 6.6}, "6.6 regions a study"),
        ({"time_ratio": 1.6}, "1.6 times as long"),
    ],
)
def test_what_speaks_against_a_promotion_is_said(change: dict[str, float], says: str) -> None:
    good = agreement_of([SAME] * 20)
    assert good.problems() == []
    (problem,) = replace(good, **change).problems()  # type: ignore[arg-type]
    assert says in problem
