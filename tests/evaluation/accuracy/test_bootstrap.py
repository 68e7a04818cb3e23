from dataclasses import replace

import numpy as np
import pytest

from evaluation.accuracy.bootstrap import Interval, by_patient, difference, figures, operating_point
from evaluation.accuracy.froc import Scored, froc


def paired(hits: list[float], false: list[float]) -> Scored:
    """One nodule and one false positive in each scan."""
    number = np.arange(len(hits))
    return Scored(np.array(hits), number, np.array(false), number, len(hits), True)


def test_no_interval_at_0_or_100_per_cent_has_width_zero() -> None:
    """Five of five patients: Clopper and Pearson give 47.8 %. No event in 5 scans: Poisson, 3.69.

    The second reader finds none of the nodules.
    """
    found = figures(paired([0.9] * 5, [0.1] * 5))
    for share in (found["cpm"], *found["sensitivity"]):
        assert (share["value"], share["high"]) == (1.0, 1.0)
        assert share["low"] == pytest.approx(0.025 ** (1 / 5)) == pytest.approx(0.4782, abs=1e-4)
    for rate in found["fp_at"]:
        assert (rate["value"], rate["low"]) == (0.0, 0.0)
        assert rate["high"] == pytest.approx(3.6889 / 5, abs=1e-4)
    none = figures(paired([-np.inf] * 5, [0.1] * 5))["cpm"]
    assert (none["value"], none["low"]) == (0.0, 0.0)
    assert none["high"] == pytest.approx(0.5218, abs=1e-4)


def test_the_limit_is_that_of_patients_and_not_of_nodules() -> None:
    """Seven nodules in one patient and one in another, all found: two of two patients."""
    none = np.zeros(0)
    group = np.array([0] * 7 + [1])
    scored = Scored(np.full(8, 0.9), group, none, none.astype(np.int64), 3, False)
    assert figures(scored)["cpm"]["low"] == pytest.approx(0.025**0.5)


def test_patients_who_are_alike_give_no_interval_of_width_zero() -> None:
    """Each of three finds one of two: at most 70.8 % of patients can be other than these."""
    counts = np.array([[2, 1, 3, 1]] * 3, float)
    share, false = operating_point(counts)
    assert share is not None
    assert (share.value, false.value) == (0.5, 3.0)
    assert (share.low, share.high) == pytest.approx((0.1462, 0.8538), abs=1e-4)
    # nine events: Garwood's limits are 4.115 and 17.085
    assert (false.low, false.high) == pytest.approx((4.1154 / 3, 17.0848 / 3), abs=1e-4)


def test_interval_follows_the_binomial() -> None:
    """Half of 100 single-nodule scans found: the 95 % interval is about 0.5 +- 1.96 * 0.05."""
    found = figures(paired([0.9, -np.inf] * 50, [0.1] * 100))
    at_one = found["sensitivity"][3]
    assert at_one["value"] == 0.5
    assert at_one["low"] == pytest.approx(0.402, abs=0.02)
    assert at_one["high"] == pytest.approx(0.598, abs=0.02)


def test_unreachable_sensitivity_stays_unreachable() -> None:
    never = figures(paired([0.9, -np.inf] * 20, [0.1] * 40))["fp_at"][3]
    assert never == {"sensitivity": 0.99, "value": None, "low": None, "high": None}


def test_draws_without_a_nodule_are_drawn_again() -> None:
    """When only one of many scans holds a nodule, every draw that counts holds it."""
    none = np.zeros(0)
    scored = Scored(np.array([0.9]), np.array([0]), none, none.astype(np.int64), 20, True)
    found = figures(scored)["cpm"]
    assert found["value"] == 1.0
    assert found["low"] == pytest.approx(0.025)


def test_a_paired_difference_is_surer_than_the_figures() -> None:
    """Both find the same half, the second one more of ten: 10 points more.

    Each reader's own interval is 60 points wide.
    """
    first = paired([0.9, -np.inf] * 5, [0.1] * 10)
    second = paired([0.9, 0.8] + [0.9, -np.inf] * 4, [0.1] * 10)
    gain = difference(first, second)["cpm"]
    assert gain["value"] == pytest.approx(0.1)
    assert gain["low"] == 0.0
    assert gain["high"] < 0.35
    own = figures(second)["cpm"]
    assert own["high"] - own["low"] > 0.5
    same = difference(second, second)["cpm"]
    assert same["value"] == 0
    assert (-same["low"], same["high"]) == pytest.approx((0.3085, 0.3085), abs=1e-4)


def test_only_readings_of_the_same_nodules_are_paired() -> None:
    with pytest.raises(ValueError, match="the same nodules and scans"):
        difference(paired([0.9], [0.1]), paired([0.9, 0.8], [0.1, 0.1]))


def test_an_operating_point_counts_scans_without_a_lesion() -> None:
    """Two of four lesions, three false positives in three scans; without lesions only these."""
    counts = np.array([[3, 1, 0, 1], [1, 1, 2, 1], [0, 0, 1, 1]], float)
    share, false = operating_point(counts)
    assert share is not None
    assert (share.value, false.value) == (0.5, 1.0)
    assert 1 / 3 <= share.low < share.high == 1.0
    none, false = operating_point(counts[2:])
    assert none is None
    assert (false.low, false.high) == pytest.approx((0.0253, 5.5716), abs=1e-4)


def test_a_refused_scan_misses_its_nodules_and_counts_in_no_rate() -> None:
    """Two false positives in the two scans that were read, and none where nothing was read."""
    share, false = operating_point(np.array([[1, 1, 1, 1], [1, 1, 1, 1], [2, 0, 0, 0]], float))
    assert share is not None
    assert (share.value, false.value, false.low < 1 < false.high) == (0.5, 1.0, True)
    read = paired([0.9, 0.9, -np.inf], [0.5, 0.5, 0.1])
    none = np.array([0.5, 0.5])
    refused = replace(read, false_score=none, false_scan=np.arange(2), refused=(2,))
    assert froc(refused).false_per_scan[-1] == 1.0
    assert figures(refused)["fp_at"][0]["value"] is None
    # a draw of refused scans alone finds nothing
    assert figures(replace(refused, refused=(1, 2)))["cpm"]["low"] == 0
    none, rate = operating_point(np.array([[1, 0, 0, 0]], float))
    assert none is not None
    assert (none.value, rate) == (0.0, None)


def test_nodules_of_one_patient_are_drawn_together() -> None:
    """Forty nodules of two patients are no surer than two: all found, half found or none."""
    group, none = np.repeat([0, 1], 20), np.zeros(0)
    score = np.where(group, -np.inf, 0.9)
    scored = Scored(score, group, none, none.astype(np.int64), 3, False)
    assert figures(scored)["cpm"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    (mean,) = by_patient(group.astype(str).tolist(), lambda chosen: [group[chosen].mean()])
    assert (mean.value, mean.low, mean.high) == (0.5, 0.0, 1.0)


def test_a_draw_without_a_statistic_does_not_count() -> None:
    """Of two patients one alone has a value; where none has one there is no interval."""
    values = np.array([np.nan, 2.0])

    def largest(chosen: np.ndarray) -> list[float]:
        known = values[chosen][np.isfinite(values[chosen])]
        return [float(known.max()) if known.size else np.nan, np.nan]

    found, none = by_patient(["a", "b"], largest)
    assert found == Interval(2.0, 2.0, 2.0)
    assert none.as_dict() == {"value": None, "low": None, "high": None}
