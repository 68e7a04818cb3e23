from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

from edge.decide import Thresholds
from edge.guarantee import Terms
from edge.merge import MergeWeights
from models.calibration.fit import CLOUD_QUANTILE, Cases
from models.calibration.guarantee import (
    ReadWith,
    Target,
    fit_settings,
    guaranteed_settings,
    nodules_of,
    out_of_reach,
    uncalibrated,
    widest_slices_mm,
)
from models.calibration.risk_control import ScoredNodules, ThresholdPath, losses
from models.runtime.artifacts import find

MERGE = [0.0, 1.0, 1.0]
"""The cloud's logit counts without limit: any edge score can reach ``possible``."""

FITTED = {"dismiss": 0.2, "report": 0.9, "alone": 0.3, "possible": 0.6, "final": 0.7}


def sound(patients: int, lost: int = 0) -> ScoredNodules:
    """One nodule a patient, found by both readers but for ``lost`` that were never proposed."""
    edge = np.full(patients, 0.8)
    edge[:lost] = -np.inf
    return ScoredNodules(edge, np.full(patients, 0.8), np.arange(patients))


def faint(patients: int, count: int, merged: float) -> ScoredNodules:
    """The same, and ``count`` nodules whose merged probability is ``merged``."""
    nodules = sound(patients)
    nodules.merged[:count] = merged
    return nodules


def cases(seed: int = 0) -> Cases:
    """Forty nodules of twenty patients, one of them never proposed, and 200 false positives."""
    rng = np.random.default_rng(seed)
    nodule = np.arange(239) < 39
    logits = np.where(nodule, 2.0, -2.0) + rng.normal(0, 1, (2, 239))
    owners = tuple(f"p{i % 20}" if found else "" for i, found in enumerate(nodule))
    return Cases(logits[0], logits[1], nodule, 1, 4.0, owners, ("p19",))


def test_enough_patients_allow_the_requested_guarantee() -> None:
    """100 without a miss guarantee 2.8 % at 90 %: the fit's ``possible`` stays."""
    found = guaranteed_settings(sound(100), FITTED, Target(0.028, 0.1), MERGE)
    assert found["guarantee"] == {
        "alpha": 0.028,
        "delta": 0.1,
        "average": pytest.approx(1 / 101, abs=1e-6),
        "patients": 100,
        "calibration": sound(100).identity,
        "asked_alpha": 0.028,
        "confidence": pytest.approx(0.933042),
        "holds": True,
    }
    assert found["thresholds"] == FITTED


def test_too_few_say_the_tightest_pair_that_holds() -> None:
    """62 without a miss guarantee 3.85 % at 90 %, the exact bound of Clopper and Pearson 3.65 %."""
    found = guaranteed_settings(sound(62), FITTED, Target(0.028, 0.1), MERGE)
    guarantee = found["guarantee"]
    assert not guarantee["holds"]
    exact = float(beta.ppf(0.9, 1, 62))
    assert exact < guarantee["alpha"] < 1.06 * exact
    assert 0.75 < guarantee["confidence"] < 1 - 0.972**62
    assert found["thresholds"]["possible"] == FITTED["possible"]


def test_thresholds_are_lowered_until_the_guarantee_holds() -> None:
    """Six of 200 are lost at the fit's ``possible`` and none below 0.4: it goes below 0.4."""
    nodules = faint(200, 6, 0.4)
    found = guaranteed_settings(nodules, FITTED, Target(0.028, 0.1), MERGE)
    at = found["thresholds"]
    assert found["guarantee"]["holds"]
    assert 0.39 < at["possible"] <= 0.4
    point = ThresholdPath(np.array([at["dismiss"]]), np.array([at["possible"]]))
    assert losses(nodules, point, at["report"]).sum() == 0
    assert at == {**FITTED, "possible": at["possible"]}


def test_where_lowering_does_not_help_the_fit_s_stay() -> None:
    found = guaranteed_settings(sound(200, lost=20), FITTED, Target(0.028, 0.1), MERGE)
    assert not found["guarantee"]["holds"]
    assert found["guarantee"]["alpha"] > 0.1
    assert found["guarantee"]["confidence"] == 0.0
    assert found["thresholds"]["possible"] == FITTED["possible"]


def test_what_the_edge_dismisses_is_lost_whatever_the_second_reader_says() -> None:
    """Ten of 200 lie below ``dismiss``, and no ``possible`` brings them back."""
    nodules = sound(200)
    nodules.edge[:10] = 0.1
    found = guaranteed_settings(nodules, FITTED, Target(0.028, 0.1), MERGE)
    assert not found["guarantee"]["holds"]
    assert found["guarantee"]["average"] == pytest.approx(11 / 201, abs=1e-6)


def test_what_no_verdict_can_bring_into_a_list_is_not_sent() -> None:
    """``dismiss`` rises to the score that the highest verdict that counts just brings there."""
    merge = [0.3, 1.1, 0.4, 1.2]
    found = guaranteed_settings(sound(100), FITTED, Target(), merge)["thresholds"]
    assert found["dismiss"] > FITTED["dismiss"]
    assert found["alone"] == max(FITTED["alone"], found["dismiss"])
    weights = MergeWeights(*merge)
    assert weights.merged(found["dismiss"] - 1e-4, 1 - 1e-9) < found["possible"]
    assert weights.merged(found["dismiss"] + 1e-4, 1 - 1e-9) > found["possible"]


@pytest.mark.parametrize("merge", [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 2.0], [0.0, 1.0, -1.0, 2.0]])
def test_a_cloud_logit_without_limit_can_bring_any_score_into_a_list(merge: list[float]) -> None:
    assert out_of_reach(0.5, merge) == 0.0


def test_without_a_proposed_nodule_there_is_no_guarantee() -> None:
    with pytest.raises(ValueError, match="all nodules of 9 patients are lost"):
        guaranteed_settings(sound(9, lost=9), FITTED, Target(), MERGE)


def test_nodules_are_scored_as_the_edge_scores_them() -> None:
    """Calibration and merger give the edge's own figures, and who was missed counts as -inf."""
    given = cases()
    settings, cloud = fit_settings(given)
    nodules = nodules_of(given, settings, cloud)
    assert len(nodules) == 40
    assert np.isneginf(nodules.edge[-1])
    assert (nodules.patient[0], nodules.patient[-1]) == ("p0", "p19")
    weights = MergeWeights.from_manifest(settings)
    slope, bias = cloud["calibration"]
    for i in (0, 7, 38):
        second = 1 / (1 + np.exp(-(slope * given.cloud[i] + bias)))
        merged = weights.merged(float(nodules.edge[i]), float(second))
        assert nodules.merged[i] == pytest.approx(merged)


def test_whose_they_are_need_not_be_known() -> None:
    given = replace(cases(), patient=(), missed_patient=())
    assert len(set(nodules_of(given, *fit_settings(given)).patient)) == 40


def test_the_edge_takes_what_is_entered() -> None:
    given = cases()
    settings, cloud = fit_settings(given)
    found = guaranteed_settings(
        nodules_of(given, settings, cloud), settings["thresholds"], Target(), MERGE
    )
    entered = {**found["guarantee"], **asdict(ReadWith("v1", "v2", 2.5, 48))}
    terms = Terms.from_manifest({"guarantee": entered})
    assert terms is not None
    assert (terms.patients, terms.hybrid, terms.holds) == (20, "v2", False)
    assert Thresholds.from_manifest(found).dismiss <= settings["thresholds"]["dismiss"]


def test_the_widest_slices_of_the_calibration_patients(tmp_path: Path) -> None:
    index = tmp_path / "index.csv"
    index.write_text("patient,slice_spacing\na,1.25\nb,2.5\nc,5\n")
    assert widest_slices_mm(index, {"a", "b"}) == 2.5


def test_the_stated_level_holds_with_the_stated_confidence() -> None:
    """Of 300 calibration sets of 62 patients, 90 % state an alpha that the population keeps."""
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(300):
        edge = np.where(rng.random(62) < 0.03, -np.inf, 0.8)
        nodules = ScoredNodules(edge, rng.beta(9, 1, 62), np.arange(62))
        found = guaranteed_settings(nodules, FITTED, Target(0.028, 0.1), MERGE)
        at = found["thresholds"]
        true = 0.03 + 0.97 * float(beta.cdf(at["possible"], 9, 1))
        kept += true <= found["guarantee"]["alpha"]
    assert kept >= 270


def test_a_hybrid_s_calibration_may_be_kept() -> None:
    """The merger then fits the edge to the hybrid as it is calibrated."""
    given = cases()
    edge, cloud = fit_settings(given, [2.0, 0.5])
    assert cloud["calibration"] == [2.0, 0.5]
    assert edge["calibration"] == fit_settings(given)[0]["calibration"]
    assert edge["merge"] != fit_settings(given)[0]["merge"]


def test_an_uncalibrated_artifact_leaves_the_shipped_one_fitted() -> None:
    """Fitting reads outputs as they are, while a service in use keeps the calibration."""
    shipped = find("hybrid-int8")
    before = dict(shipped.settings)
    found = uncalibrated(shipped)
    assert found.settings == {**before, "calibration": [1.0, 0.0]}
    assert (found.path, found.sha256) == (shipped.path, shipped.sha256)
    assert dict(find("hybrid-int8").settings) == before


def test_fitted_scores_separate_nodules_from_false_positives() -> None:
    """Of logits with a wrong zero and scale, the calibrated score is 0.5 between the classes."""
    rng = np.random.default_rng(0)
    nodule = np.arange(4000) < 2000
    logit = np.where(nodule, 1.0, -1.0) + rng.normal(0, 1, 4000)
    edge, cloud = fit_settings(Cases(2 * logit + 3, 0.5 * logit - 1, nodule, 0, scans=100))
    for (slope, bias), middle in ((edge["calibration"], 3.0), (cloud["calibration"], -1.0)):
        assert slope > 0
        assert abs(-bias / slope - middle) < 0.1
    assert set(edge["thresholds"]) == {"dismiss", "report", "alone", "possible", "final"}
    bias, edge_weight, cloud_weight, most = edge["merge"]
    assert abs(bias) < 0.1
    assert edge_weight == cloud_weight > 0
    slope, zero = cloud["calibration"]
    highest = float(np.quantile((0.5 * logit - 1)[nodule], CLOUD_QUANTILE))
    assert most == pytest.approx(slope * highest + zero, abs=1e-3)
