from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from evaluation.accuracy.calibration import (
    Settings,
    changed,
    curve,
    kept_by_sets,
    listed,
    missed,
    poisson,
    reliability,
)
from models.calibration.cases import Cases
from models.calibration.fit import NODULES_PER_SCAN, fit_settings
from models.calibration.guarantee import stated
from tests.models.calibration.made_cases import made


def fitted(cases: Cases) -> Settings:
    edge, cloud = fit_settings(cases)
    return Settings({**edge, "guarantee": stated(cases, edge, cloud, 0.1)}, cloud)


CASES = made(2000, 8000, scans=80)
SETTINGS = fitted(CASES)


def test_probabilities_that_are_shares_are_seen_to_be() -> None:
    for score in SETTINGS.scores(CASES).values():
        rows = reliability(score, CASES)
        assert sum(row["nodules"] + row["false"] for row in rows) == CASES.edge.size
        for row in rows:
            assert row["from"] <= row["mean"] <= row["to"]
            assert row["share"] == pytest.approx(row["mean"], abs=0.2)


def test_a_probability_that_is_no_share_is_seen_too() -> None:
    """Nodules are as frequent as in whole scans: at 0.9 for all, one in 75 is a nodule."""
    (row,) = reliability(np.full(CASES.edge.size, 0.8), CASES)
    weight = NODULES_PER_SCAN * 80 * 2000 / CASES.nodules
    assert row["share"] == pytest.approx(weight / (weight + 8000))


def test_a_threshold_keeps_nodules_and_false_candidates_that_are_not_dismissed() -> None:
    score = SETTINGS.scores(CASES)["edge and cloud"]
    at = listed(score, CASES, SETTINGS, SETTINGS.limits["finding"])
    assert at["nodules"] == CASES.nodules > 2000
    assert 0.8 < at["sensitivity"] < 1
    assert at["false_per_scan"]["high"] > 1 >= at["false_per_scan"]["value"]
    few = made(100, 100, scans=1)
    line = curve(SETTINGS.scores(few)["edge"], few, SETTINGS)
    assert line["sensitivity"] == sorted(line["sensitivity"])


@pytest.mark.parametrize("count", [0, 3, 20])
def test_a_rate_has_its_exact_interval(count: int) -> None:
    rate = poisson(count, 10)
    assert rate["high"] == pytest.approx(chi2.ppf(0.975, 2 * count + 2) / 20)
    assert rate["low"] == pytest.approx(chi2.ppf(0.025, 2 * count) / 20 if count else 0.0)


def test_findings_that_verdicts_add_and_remove_are_counted() -> None:
    moved = changed(CASES, SETTINGS)
    same = changed(replace(CASES, diameter_mm=np.full(CASES.edge.size, 40.0)), SETTINGS)
    assert moved["nodules_added"] > moved["nodules_removed"]
    assert set(same.values()) == {0}  # masses are left to the edge


def test_misses_stand_beside_the_guarantee() -> None:
    found = missed(CASES, SETTINGS)
    assert found["patients"] == 1000
    for name in ("findings", "listed"):
        one = found[name]
        assert one["miss_rate"] < one["at_most"] < one["at_most_of_three"]
        assert one["within"]
    worse = missed(replace(CASES, missed=CASES.missed * 10), SETTINGS)
    assert not worse["listed"]["within"]


def test_the_bound_of_drawn_sets_holds_as_often_as_it_says() -> None:
    shares = np.random.default_rng(0).choice([0.0, 0.5, 1.0], 100, p=[0.85, 0.05, 0.1])
    assert kept_by_sets(shares, 0.1, np.random.default_rng(1)) > 0.87
