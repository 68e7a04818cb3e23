from __future__ import annotations

import math

import pytest

from edge.errors import UnfitModel
from edge.exchange import Escalated
from edge.finding import DecidedBy, Route, SecondReading
from edge.link import OFF
from edge.merge import Merged, MergeWeights, merge
from protos.messages import Refusal, Verdict
from tests.edge.cases import THRESHOLDS, WEIGHTS, plan_of


def verdict(roi_id: int, probability: float) -> Verdict:
    """A verdict of 8 mm."""
    return Verdict(roi_id, probability, 8.0, "fake 1", 0.0, 0.0)


def merged(scores: tuple[float, ...], answers: Escalated, max_rois: int = 64) -> Merged:
    """What becomes of candidates of these scores."""
    return merge(plan_of(*scores, max_rois=max_rois), answers, THRESHOLDS, WEIGHTS)


def test_merged_probability_is_the_logistic_sum() -> None:
    """0.4 and 0.9 with weights 1 and 2 and bias -1 give the sigmoid of their logits' sum."""
    x = -1 + math.log(0.4 / 0.6) + 2 * math.log(0.9 / 0.1)
    expected = 1 / (1 + math.exp(-x))
    assert MergeWeights(-1.0, 1.0, 2.0).merged(0.4, 0.9) == pytest.approx(expected)


@pytest.mark.parametrize(("edge", "cloud"), [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
def test_certain_scores_give_a_finite_probability(edge: float, cloud: float) -> None:
    """Scores of exactly 0 and 1 are merged without overflow."""
    assert 0.0 <= MergeWeights(0.0, 5.0, 90.0).merged(edge, cloud) <= 1.0


def test_cloud_raises_a_candidate_to_a_finding() -> None:
    """A verdict of 0.9 on 0.45 makes a finding of the cloud, with the cloud's diameter."""
    (finding,) = merged((0.45,), Escalated({0: verdict(0, 0.9)})).findings
    assert finding.decided_by is DecidedBy.CLOUD
    assert finding.probability == pytest.approx(0.45 * 0.9 / (0.45 * 0.9 + 0.55 * 0.1))
    assert (finding.diameter_mm, finding.edge_score) == (8.0, 0.45)
    assert finding.reason == "cloud raised 0.45 to 0.88, which reaches 0.60"


def test_cloud_lowers_a_candidate_below_the_final_threshold() -> None:
    """A verdict of 0.02 on 0.8 leaves no finding."""
    result = merged((0.8,), Escalated({0: verdict(0, 0.02)}))
    assert result.findings == ()
    assert result.second_reading is SecondReading.COMPLETE


def test_edge_alone_decides_when_the_verdict_is_missing() -> None:
    """Without a verdict a score from 0.5 on is a finding, one below is not, and it says why."""
    result = merged((0.8, 0.3), Escalated(reason="Unreachable: connection refused"))
    (finding,) = result.findings
    assert finding.decided_by is DecidedBy.EDGE_ALONE
    assert finding.probability == finding.edge_score == 0.8
    assert finding.reason == (
        "edge alone, 0.80 reaches 0.50: second reading missing (Unreachable: connection refused)"
    )
    assert result.second_reading is SecondReading.MISSING
    assert result.reason == (
        "0 of 2 uncertain candidates were read again: Unreachable: connection refused"
    )


def test_reported_needs_no_cloud_and_dismissed_is_no_finding() -> None:
    """Only the certain candidate is a finding, the edge's own; nothing wanted a second reading."""
    result = merged((0.95, 0.05), Escalated())
    (finding,) = result.findings
    assert (finding.decided_by, finding.route) == (DecidedBy.EDGE, Route.REPORT)
    assert result.second_reading is SecondReading.COMPLETE
    assert result.reason == "no candidate was uncertain"


def test_some_verdicts_make_a_partial_reading() -> None:
    """One verdict of two is partial, and each candidate is judged by what there is of it."""
    answers = Escalated({0: verdict(0, 0.9)}, reason="DeadlinePassed: late")
    result = merged((0.7, 0.6), answers)
    assert result.second_reading is SecondReading.PARTIAL
    assert [f.decided_by for f in result.findings] == [DecidedBy.CLOUD, DecidedBy.EDGE_ALONE]
    assert result.reason == "1 of 2 uncertain candidates were read again: DeadlinePassed: late"


def test_refused_region_names_its_refusal() -> None:
    """The finding says with which error the cloud refused its region."""
    answers = Escalated({}, {0: Refusal(0, "ModelFailed", "not finite")}, "1 regions refused")
    (finding,) = merged((0.7,), answers).findings
    assert "second reading missing (ModelFailed: not finite)" in finding.reason


def test_held_back_candidate_names_the_limit() -> None:
    """A candidate that was not sent for want of room says so, and the reading is partial."""
    answers = Escalated({0: verdict(0, 0.9)})
    result = merged((0.55, 0.7), answers, max_rois=1)
    assert result.second_reading is SecondReading.PARTIAL
    assert "no more than 1 regions" in result.findings[1].reason


def test_switched_off_is_missing_whatever_was_uncertain() -> None:
    """Without a cloud the second reading is missing, with the reason off."""
    off = Escalated(reason="off", switched_off=True)
    for scores in ((0.7,), (0.95,), ()):
        result = merge(plan_of(*scores, link=OFF), off, THRESHOLDS, WEIGHTS)
        assert (result.second_reading, result.reason) == (SecondReading.MISSING, "off")


def test_findings_come_by_falling_probability() -> None:
    """The merged probability orders them, not the edge's score."""
    result = merged((0.95, 0.6), Escalated({1: verdict(1, 0.99)}))
    assert [f.edge_score for f in result.findings] == [0.6, 0.95]


def test_weights_come_from_the_manifest() -> None:
    """Three numbers are taken in the order bias, edge, cloud."""
    assert MergeWeights.from_manifest({"merge": [-1, 0.5, 2.0]}) == MergeWeights(-1.0, 0.5, 2.0)


@pytest.mark.parametrize("given", [None, [1.0, 2.0], [1.0, "x", 2.0], [1.0, math.inf, 2.0]])
def test_unfit_weights_are_refused(given: object) -> None:
    """Anything but three finite numbers is refused."""
    with pytest.raises(UnfitModel, match="merge = "):
        MergeWeights.from_manifest({"merge": given})
