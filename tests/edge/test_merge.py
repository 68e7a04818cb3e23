import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.strategies import floats

from edge.decide import Situation, Thresholds, decide
from edge.errors import UnfitModel
from edge.escalation.rois import EscalationResult
from edge.findings import BoolArray, DecidedBy, Finding, Route, SecondReading
from edge.link.estimate import OFF, LinkEstimate
from edge.merge import Merged, MergeWeights, merge
from edge.report.compose import reading_reason
from imaging.volume import Geometry
from models.runtime.artifacts import every, find
from protos.messages import Refusal, Verdict
from tests.edge.builders import LISTING, THRESHOLDS, WEIGHTS, candidate, plan_of


def verdict(roi_id: int, probability: float) -> Verdict:
    return Verdict(roi_id, probability, 8.0, "fake 1", 0.0, 0.0)


def merged(scores: tuple[float, ...], answers: EscalationResult, max_rois: int = 64) -> Merged:
    return merge(plan_of(*scores, max_rois=max_rois), answers, THRESHOLDS, WEIGHTS, Geometry())


def test_merged_probability_is_the_logistic_sum() -> None:
    x = -1 + math.log(0.4 / 0.6) + 2 * math.log(0.9 / 0.1)
    expected = 1 / (1 + math.exp(-x))
    assert MergeWeights(-1.0, 1.0, 2.0).merged(0.4, 0.9, 6.0) == pytest.approx(expected)


def listed(score: float, probability: float | None, limits: Thresholds = LISTING) -> Merged:
    answers = EscalationResult(reason="Unreachable: refused")
    if probability is not None:
        answers = EscalationResult({0: verdict(0, probability)})
    return merge(plan_of(score), answers, limits, WEIGHTS, Geometry())


@pytest.mark.parametrize(
    ("score", "cloud", "probability", "findings", "possible"),
    [
        (0.5, 0.6, 0.6, 1, 0),
        (0.5, 0.59, 0.59, 0, 1),
        (0.5, 0.21, 0.21, 0, 1),
        (0.5, 0.19, 0.19, 0, 0),
        (0.6, None, 0.6, 1, 0),
        (0.59, None, 0.59, 0, 1),
        (0.2, None, 0.2, 0, 1),
        (0.19, None, 0.19, 0, 0),
    ],
)
def test_an_uncertain_candidate_below_the_threshold_of_findings_may_be_a_possible_one(
    score: float, cloud: float | None, probability: float, findings: int, possible: int
) -> None:
    result = listed(score, cloud)
    assert (len(result.findings), len(result.possible)) == (findings, possible)
    for one in (*result.findings, *result.possible):
        assert one.probability == pytest.approx(probability)
    without = listed(score, cloud, replace(LISTING, possible=0.6))
    assert (len(without.findings), without.possible) == (findings, ())


@pytest.mark.parametrize(
    ("probability", "decided_by", "before"),
    [
        (0.25, DecidedBy.CLOUD, "the cloud lowered 0.45 to 0.21,"),
        (0.5, DecidedBy.CLOUD, "the cloud left it at 0.45,"),
        (None, DecidedBy.EDGE_ALONE, "no second reading: Unreachable: refused; edge score 0.45 is"),
    ],
)
def test_the_reason_of_a_possible_finding_names_both_thresholds(
    probability: float | None, decided_by: DecidedBy, before: str
) -> None:
    (found,) = listed(0.45, probability).possible
    limits = "below the threshold 0.60 of findings, at or above 0.20 of possible findings"
    assert (found.decided_by, found.reason) == (decided_by, f"{before} {limits}")


def test_what_no_verdict_can_lower_stays_a_finding_and_an_audit_confirms_or_not() -> None:
    plan = plan_of(0.95, 0.05)
    plan = replace(plan, send=(0, 1), audit=(1,))
    for probability, count in ((0.3, 1), (0.7, 2)):
        answers = EscalationResult({0: verdict(0, 0.001), 1: verdict(1, probability)})
        result = merge(plan, answers, LISTING, WEIGHTS, Geometry())
        assert (len(result.findings), result.possible) == (count, ())


SHIPPED = find("screening-int8").settings
LIMITS, FITTED = Thresholds.from_manifest(SHIPPED), MergeWeights.from_manifest(SHIPPED)
shares = floats(0.0, 1.0)


def treated(score: float, cloud: float | None, diameter_mm: float = 8.0) -> tuple[int, float]:
    """What a candidate becomes with the shipped settings: 2 a finding, 1 possible, 0 neither."""
    one = replace(candidate(score), diameter_mm=diameter_mm)
    plan = decide(Situation((one,), LIMITS, LinkEstimate(), 60.0, 48**3, 64))
    answers = EscalationResult({} if cloud is None else {0: verdict(0, cloud)})
    result = merge(plan, answers, LIMITS, FITTED, Geometry())
    listed = (*result.findings, *result.possible)
    rank = 2 * len(result.findings) + len(result.possible)
    return rank, listed[0].probability if listed else 0.0


@given(shares, shares)
def test_a_verdict_that_raises_the_probability_never_makes_the_report_worse(
    score: float, cloud: float
) -> None:
    """Nor does one that lowers it take a finding away unless the probability falls below."""
    (alone, before), (read, after) = treated(score, None), treated(score, cloud)
    if FITTED.merged(score, cloud, 8.0) >= score:
        assert read >= alone
    if alone == 2 and read < 2:
        assert after < LIMITS.finding <= before


@given(shares, shares, shares)
def test_a_candidate_that_was_not_read_is_never_treated_better_than_one_that_was_raised(
    score: float, other: float, cloud: float
) -> None:
    raised = FITTED.merged(other, cloud, 8.0)
    if LIMITS.dismiss <= other and raised >= score:
        assert treated(other, cloud)[0] >= treated(score, None)[0]


@given(shares, shares, shares)
def test_a_surer_second_reader_never_makes_the_report_worse(
    score: float, one: float, two: float
) -> None:
    low, high = sorted((one, two))
    assert treated(score, low)[0] <= treated(score, high)[0]


@pytest.mark.parametrize(
    "name", [name for name, one in every().items() if "thresholds" in one.settings]
)
def test_no_verdict_takes_away_what_the_edge_reports(name: str) -> None:
    """With the settings of each network that ships; a score of 1 is a logit that was rounded."""
    settings = every()[name].settings
    limits, fitted = Thresholds.from_manifest(settings), MergeWeights.from_manifest(settings)
    for score in (limits.report, math.nextafter(1.0, 0.0), 1.0):
        situation = Situation((candidate(score),), limits, LinkEstimate(), 60.0, 48**3, 64)
        if decide(situation).decisions[0].route is Route.REPORT:
            assert fitted.merged(score, 0.0, 8.0) >= limits.finding
        else:
            assert limits.report == 1.0


@given(shares, shares)
def test_the_second_reader_measures_a_mass_and_does_not_judge_it(
    score: float, cloud: float
) -> None:
    assert treated(score, cloud, 31.0) == treated(score, None, 31.0)


def test_possible_findings_come_by_falling_probability_and_have_outlines() -> None:
    answers = EscalationResult(
        {0: verdict(0, 0.3), 1: verdict(1, 0.55)}, masks={1: ball((27, 24, 24), 4.0)}
    )
    result = merge(plan_of(0.5, 0.5), answers, LISTING, WEIGHTS, Geometry())
    assert [round(one.probability, 2) for one in result.possible] == [0.55, 0.3]
    assert [one.outline is None for one in result.possible] == [False, True]
    assert result.second_reading is SecondReading.COMPLETE


def ball(middle: tuple[int, int, int], radius: float) -> BoolArray:
    away = np.moveaxis(np.indices((48, 48, 48)), 0, 3) - middle
    return np.asarray(np.linalg.norm(away, axis=3) < radius)


def outlined(
    mask: BoolArray | None, *, inner: Any = None, geometry: Geometry | None = None
) -> Finding:
    """The finding of a candidate of 6 mm that the cloud outlined so, in a box of 1 mm."""
    answers = EscalationResult({0: verdict(0, 0.9)}, masks={} if mask is None else {0: mask})
    plan = replace(plan_of(0.45), inner=inner)
    (finding,) = merge(plan, answers, THRESHOLDS, WEIGHTS, geometry or Geometry()).findings
    return finding


def test_an_outlined_nodule_lies_where_its_voxels_are() -> None:
    """The region's middle voxel is the candidate; 3 mm above it the centre moves up by 3 mm."""
    finding, plain = outlined(ball((27, 24, 24), 4.0)), outlined(None)
    np.testing.assert_allclose(np.subtract(finding.index_zyx, plain.index_zyx), (3, 0, 0))
    np.testing.assert_allclose(np.subtract(finding.centre_mm, plain.centre_mm), (0, 0, 3))
    assert finding.outline is not None
    assert finding.outline.volume_mm3 == pytest.approx(4 / 3 * math.pi * 64, rel=0.1)
    assert finding.volume_mm3 == pytest.approx(math.pi / 6 * finding.diameter_mm**3)


def test_the_outline_of_a_mass_does_not_move_it() -> None:
    """Of a mass of more than 30 mm the region may hold a part."""
    finding, plain = outlined(ball((24, 27, 24), 16.0)), outlined(None)
    assert (finding.index_zyx, finding.centre_mm) == (plain.index_zyx, plain.centre_mm)
    assert finding.outline is not None
    assert finding.outline.diameter_mm == pytest.approx(32, abs=0.5)


def test_a_rotated_box_rotates_the_shift() -> None:
    """Of a box at 0.5 mm that lies on its side, the same voxels are a shift along its axes."""
    turned = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    geometry = Geometry((0.5, 0.5, 0.5), (0.0, 0.0, 0.0), turned)
    finding = outlined(ball((24, 24, 28), 4.0), geometry=geometry)
    at = candidate(0.45)
    middle = np.array(at.index_zyx)
    expected = geometry.to_world(middle + np.array([0, 0, 4])) - geometry.to_world(middle)
    shift = np.subtract(finding.centre_mm, at.centre_mm)
    np.testing.assert_allclose(shift, expected, atol=1e-9)
    assert np.linalg.norm(shift) == pytest.approx(2)
    assert finding.outline is not None
    assert finding.outline.volume_mm3 == pytest.approx(4 / 3 * math.pi * 64 / 8, rel=0.1)


@pytest.mark.parametrize(
    "mask",
    [
        ball((24, 24, 24), 9.0),  # twice as wide as the network says: it has run into a vessel
        ball((24, 24, 24), 2.5),  # a small part of the nodule
        ball((24, 24, 24), 5.0) | (np.indices((48, 48, 48))[1:] == 24).all(0),  # reaches the face
    ],
)
def test_an_outline_that_cannot_be_the_whole_nodule_is_drawn_and_not_measured(
    mask: BoolArray,
) -> None:
    finding = outlined(mask)
    assert finding.outline is not None
    assert (finding.volume_mm3, finding.diameter_mm) == (None, 8.0)


@pytest.mark.parametrize(
    ("inner", "stated"),
    [
        (((18.0, 0.0, 0.0), (42.0, 60.0, 60.0)), True),
        (((26.0, 0.0, 0.0), (42.0, 60.0, 60.0)), False),
        (((18.0, 0.0, 0.0), (34.0, 60.0, 60.0)), False),
        (((18.0, 26.0, 0.0), (42.0, 60.0, 60.0)), False),
    ],
)
def test_a_volume_at_the_first_or_last_slice_is_not_stated(inner: Any, stated: bool) -> None:
    """The outline reaches from 26 to 34 of the box; the slices lie at ``inner``."""
    finding = outlined(ball((24, 24, 24), 4.5), inner=inner)
    assert finding.outline is not None
    assert (finding.volume_mm3 is not None, finding.diameter_mm == 8.0) == (stated, not stated)


def test_an_outline_of_another_structure_is_not_taken_for_the_nodule() -> None:
    finding = outlined(ball((40, 24, 24), 3.0))
    assert finding.index_zyx == (30.0, 30.0, 30.0)
    assert (finding.outline, finding.volume_mm3) == (None, None)


def test_the_cloud_characterizes_what_the_edge_reports() -> None:
    answers = EscalationResult({0: verdict(0, 0.001)}, masks={0: ball((27, 24, 24), 4.0)})
    result = merged((0.95,), answers)
    (finding,) = result.findings
    assert finding.decided_by is DecidedBy.EDGE
    assert finding.outline is not None
    assert finding.diameter_mm == finding.outline.diameter_mm
    assert finding.probability == pytest.approx(WEIGHTS.merged(0.95, 0.001, 6.0))
    assert result.reason == f"{NONE}; the cloud measured 1 of 1 findings of the edge"


NONE = "no candidate was uncertain"
GONE = EscalationResult(reason="Unreachable: connection refused")
MEASURED = EscalationResult({0: verdict(0, 0.9)}, reason="late")


@pytest.mark.parametrize(
    ("scores", "link", "answers", "reading", "reason"),
    [
        ((0.05,), None, EscalationResult(), SecondReading.COMPLETE, NONE),
        # the cloud was wanted for size and kind, and was not there
        ((0.95, 0.05), None, GONE, SecondReading.MISSING,
         f"{NONE}; size, type and outline of 1 finding are missing: {GONE.reason}"),
        # the breaker is open: nothing was sent
        ((0.95,), OFF, EscalationResult(), SecondReading.MISSING,
         f"{NONE}; size, type and outline of 1 finding are missing: {OFF.reason}"),
        ((0.97, 0.96, 0.95), None, MEASURED, SecondReading.PARTIAL,
         f"{NONE}; the cloud measured 1 of 3 findings of the edge;"
         " size, type and outline of 2 findings are missing: late"),
        # a characterization is no second reading
        ((0.95, 0.4), None, MEASURED,
         SecondReading.MISSING, "0 of 1 uncertain candidates were read again: late"),
        ((0.95, 0.4), None, EscalationResult({1: verdict(1, 0.9)}, reason="late"),
         SecondReading.PARTIAL, "1 of 1 uncertain candidates were read again;"
         " size, type and outline of 1 finding are missing: late"),
        ((0.95, 0.4), None, GONE, SecondReading.MISSING,
         f"0 of 1 uncertain candidates were read again: {GONE.reason};"
         " size, type and outline of 1 finding are missing"),
    ],
)  # fmt: skip
def test_how_complete_the_second_reading_is(
    scores: tuple[float, ...],
    link: LinkEstimate | None,
    answers: EscalationResult,
    reading: SecondReading,
    reason: str,
) -> None:
    result = merge(plan_of(*scores, link=link), answers, THRESHOLDS, WEIGHTS, Geometry())
    assert (result.second_reading, reading_reason(result, ())) == (reading, reason)
    reported = [one for one in result.findings if one.route is Route.REPORT]
    assert [one.decided_by for one in reported] == [DecidedBy.EDGE] * sum(
        score >= 0.95 for score in scores
    )


def test_a_refused_roi_names_its_refusal() -> None:
    answers = EscalationResult(refusals={0: Refusal(0, "ModelFailed", "not finite")}, reason="1")
    (finding,) = merged((0.7,), answers).findings
    assert "no second reading: the cloud's model failed (not finite)" in finding.reason


def test_switched_off_is_no_missing_reading_whatever_was_uncertain() -> None:
    off = EscalationResult(reason=OFF.reason, switched_off=True)
    for scores in ((0.7,), (0.95,), ()):
        result = merge(plan_of(*scores, link=OFF), off, THRESHOLDS, WEIGHTS, Geometry())
        assert result.second_reading is SecondReading.OFF
        assert result.reason == f"{OFF.reason}; the edge alone gives no type and no outline"


def test_the_cloud_counts_no_more_than_its_most() -> None:
    """Beyond the logit that no false positive reached, more certainty changes nothing."""
    weights = MergeWeights(0.0, 1.0, 0.5, most=2.0)
    at_most = 1 / (1 + math.exp(-2.0))
    assert weights.merged(0.4, 0.999, 6.0) == pytest.approx(weights.merged(0.4, at_most, 6.0))
    assert weights.merged(0.4, 0.7, 6.0) < weights.merged(0.4, at_most, 6.0)


@pytest.mark.parametrize(
    "value",
    [
        *(
            None,
            [1.0, 2.0],
            [1.0] * 4,
            *([1.0, odd, 2.0, 0.0, 1.0] for odd in ("x", True, 10**400, math.inf)),
        ),
        *([1.0, -0.5, 2.0, 0.0, 1.0], [1.0, 0.5, -2.0, 0.0, 1.0], [1.0, 0.5, 2.0, 1.0, 0.0]),
    ],
)
def test_unfit_weights_are_refused(value: object) -> None:
    with pytest.raises(UnfitModel, match="merge = "):
        MergeWeights.from_manifest({"merge": value})
