from dataclasses import replace

import numpy as np
import pytest

from edge.decide import Thresholds
from edge.merge import MergeWeights
from models.calibration import fit
from models.calibration.cases import Cases
from models.calibration.fit import (
    FALSE_LISTED,
    NODULES_PER_SCAN,
    REGIONS,
    allowed,
    fit_settings,
    merged,
    probabilities,
    weights_of,
)


def made(nodules: int = 400, false: int = 1000, scans: int = 11, *, seed: int = 0) -> Cases:
    """Candidates whose logits separate; two nodules a patient, one in twenty never proposed."""
    rng = np.random.default_rng(seed)
    nodule = np.arange(nodules + false) < nodules
    edge = np.where(nodule, 1.0, -2.5) + rng.normal(0, 1.0, nodule.size)
    cloud = np.where(nodule, 3.0, -2.0) + rng.normal(0, 1.7, nodule.size)
    owner = np.array([f"p{i // 2:03}" if i < nodules else f"scan {i % scans}"
                      for i in range(nodule.size)])  # fmt: skip
    missed = tuple(f"p{i:03}" for i in range(0, nodules // 2, 10))
    diameter = np.where(rng.random(nodule.size) < 0.02, 40.0, 8.0)
    return Cases(edge, cloud, diameter, nodule, owner, missed, scans)


def test_probabilities_are_shares_of_nodules_with_and_without_a_verdict() -> None:
    """On one scale: as many nodules a scan as in whole scans, whatever number was inserted."""
    cases = made(4000, 10_000, scans=100)
    settings, cloud = fit_settings(cases)
    weight = weights_of(cases)
    assert weight[cases.nodule].sum() + NODULES_PER_SCAN * 100 * len(cases.missed) / cases.nodules \
        == pytest.approx(NODULES_PER_SCAN * 100)  # fmt: skip
    for score in probabilities(cases, settings, cloud):
        for low, high in ((0.02, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.0)):
            inside = (score >= low) & (score < high)
            mean = np.average(score[inside], weights=weight[inside])
            share = np.average(cases.nodule[inside], weights=weight[inside])
            assert share == pytest.approx(mean, abs=0.12)


def test_thresholds_leave_the_stated_number_of_false_candidates() -> None:
    cases = made()
    settings, cloud = fit_settings(cases)
    limits = settings["thresholds"]
    edge, both = probabilities(cases, settings, cloud)
    false = ~cases.nodule & ((edge >= limits["dismiss"]) | cases.mass)
    assert (false & (both >= limits["finding"])).sum() <= allowed(11) == 6
    assert (false & (both >= limits["possible"])).sum() <= FALSE_LISTED * 11
    assert (false & ~cases.mass).sum() <= REGIONS * 11
    assert limits["possible"] <= limits["finding"]
    assert limits["dismiss"] <= limits["report"]


def test_the_edge_takes_what_the_fit_writes_and_merges_as_it_does() -> None:
    cases = made()
    settings, cloud = fit_settings(cases)
    Thresholds.from_manifest(settings)
    weights = MergeWeights.from_manifest(settings)
    edge, both = probabilities(cases, settings, cloud)
    slope, bias = cloud["calibration"]
    second = 1 / (1 + np.exp(-(slope * cases.cloud + bias)))
    rows = zip(edge.tolist(), second.tolist(), cases.diameter_mm.tolist(), strict=True)
    # the edge counts no score as surer than one in a million
    np.testing.assert_allclose(both, [weights.merged(*row) for row in rows], atol=2e-3)


def test_a_verdict_changes_nothing_from_report_on_and_could_list_what_the_bound_dismisses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit, "REGIONS", 10.0)
    settings, _ = fit_settings(made())
    weights, limits = MergeWeights.from_manifest(settings), settings["thresholds"]
    assert weights.merged(limits["report"], 0.0, 8.0) >= limits["finding"] - 1e-4
    assert weights.merged(limits["dismiss"] - 1e-6, 1.0, 8.0) > limits["possible"]


def test_masses_are_left_to_the_edge() -> None:
    """A second reader that is blind to masses neither demotes them nor loses its weight."""
    cases = made()
    blind = replace(cases, cloud=np.where(cases.mass, -6.0, cases.cloud))
    settings, cloud = fit_settings(blind)
    edge, both = probabilities(blind, settings, cloud)
    np.testing.assert_array_equal(edge[blind.mass], both[blind.mass])
    spared = replace(cases, diameter_mm=np.full(cases.edge.size, 8.0))
    assert settings["merge"][2] > 0.9 * fit_settings(spared)[0]["merge"][2]


def test_a_few_nodules_that_the_cloud_rates_lowest_do_not_take_its_weight() -> None:
    """They are lost at any useful threshold; eight take half of it in a logistic regression."""
    cases = made()
    low = replace(cases, cloud=np.where(np.arange(cases.edge.size) < 8, -40.0, cases.cloud))
    shares = []
    for one in (cases, low):
        _, edge, cloud, *_ = fit_settings(one, (1.0, 0.0))[0]["merge"]
        shares.append(cloud / (edge + cloud))
    assert shares[1] == pytest.approx(shares[0], abs=0.1)


@pytest.mark.parametrize("calibration", [None, (1.0, 0.0)])
def test_a_reader_that_ranks_nothing_is_refused(calibration: tuple[float, float] | None) -> None:
    cases = made()
    with pytest.raises(ValueError, match="do not rank"):
        fit_settings(replace(cases, cloud=-cases.cloud), calibration)


def test_the_mean_counts_between_the_limits() -> None:
    none = np.zeros(3, bool)
    found = merged(np.zeros(3), np.array([-9.0, 0.0, 9.0]), none, [1.0, 2.0, 0.5, -4.0, 2.0])
    np.testing.assert_allclose(found, [-1, 1, 2])
