import numpy as np
from scipy.special import expit

from imaging.volume import Geometry
from models.runtime.detection import Peaks, find_peaks, sigmoid, strongest, to_candidates
from models.runtime.screener import size_prior


def maps_with(*peaks: tuple[tuple[int, int, int], float, float]) -> np.ndarray:
    """Maps of 12^3 cells with the given cells raised: place, logit, diameter in mm."""
    maps = np.zeros((5, 12, 12, 12), np.float32)
    maps[0] = -9
    maps[4] = np.log(5)
    for (z, y, x), logit, diameter in peaks:
        maps[0, z, y, x] = logit
        maps[4, z, y, x] = np.log(diameter)
    return maps


def test_a_peak_lies_at_its_cells_centre_plus_the_offset() -> None:
    """Cell 3 of 4 voxels has its centre at 13.5; an offset of half a cell moves it by 2."""
    maps = maps_with(((3, 5, 7), 2.0, 8.0))
    maps[1, 3, 5, 7], maps[3, 3, 5, 7] = 0.5, -0.25
    peaks = find_peaks(maps, least_logit=-5, most=10)
    np.testing.assert_allclose(peaks.index_zyx, [[15.5, 21.5, 28.5]])
    np.testing.assert_allclose(peaks.diameter_mm, [8.0], rtol=1e-6)


def test_peaks_come_strongest_first_and_no_more_than_requested() -> None:
    maps = maps_with(*[((2, 2, 2 + 3 * n), float(n), 4.0) for n in range(4)])
    peaks = find_peaks(maps, least_logit=-5, most=2)
    assert peaks.logit.tolist() == [3.0, 2.0]


def test_the_weaker_of_two_peaks_inside_one_nodule_goes() -> None:
    """Peaks two cells apart are one nodule of 30 mm, but two nodules of 6 mm."""
    near = [((5, 5, 5), 3.0, 30.0), ((5, 5, 7), 2.0, 30.0)]
    assert len(find_peaks(maps_with(*near), least_logit=-5, most=9).logit) == 1
    small = [(place, logit, 6.0) for place, logit, _ in near]
    assert len(find_peaks(maps_with(*small), least_logit=-5, most=9).logit) == 2


def test_each_peak_that_stays_is_far_from_all_stronger_ones_that_stay() -> None:
    """Also where there are more peaks than distances are computed for at once."""
    rng = np.random.default_rng(0)
    every = Peaks(
        -np.arange(900.0), np.round(rng.uniform(0, 60, (900, 3)), 1), rng.uniform(2, 16, 900)
    )
    kept: list[int] = []
    for n in range(900):
        away = np.linalg.norm(every.index_zyx[kept] - every.index_zyx[n], axis=1)
        reach = np.maximum(np.maximum(every.diameter_mm[kept], every.diameter_mm[n]) / 2, 4)
        kept += [n] if (away >= reach).all() else []
    assert kept[-1] > 600
    for most in (1, 50, 900):
        assert (-strongest([every], most).logit).tolist() == kept[:most]


def test_what_is_large_is_likelier_a_nodule() -> None:
    added = size_prior(np.array([5.0, 18.0, 22.0, 26.0, 60.0]))
    np.testing.assert_allclose(added, [0.0, 0.0, 1.0, 2.0, 2.0])
    maps = maps_with(((5, 5, 5), 0.0, 24.0), ((5, 5, 7), 1.0, 5.0))
    peaks = find_peaks(maps, least_logit=-5, most=9, prior=size_prior)
    np.testing.assert_allclose(peaks.logit, [1.5], rtol=1e-6)
    np.testing.assert_allclose(peaks.diameter_mm, [24.0], rtol=1e-6)


def test_diameters_of_a_coarse_map_are_in_mm() -> None:
    """What is 12 voxels of 2 mm across is 24 mm, for the prior too."""
    maps = maps_with(((5, 5, 5), 0.0, 12.0))
    peaks = find_peaks(maps, least_logit=-5, most=9, prior=size_prior, voxel_mm=2.0)
    np.testing.assert_allclose([*peaks.diameter_mm, *peaks.logit], [24.0, 1.5], rtol=1e-6)


def test_of_several_readings_the_strongest_stay() -> None:
    at = np.array([[10.0, 10.0, 10.0], [40.0, 40.0, 40.0]])
    first = Peaks(np.array([1.0, 0.5]), at, np.array([8.0, 8.0]))
    second = Peaks(np.array([2.0]), at[:1] + 1, np.array([30.0]))
    found = strongest([first, second], 9)
    assert found.logit.tolist() == [2.0, 0.5]
    assert found.diameter_mm.tolist() == [30.0, 8.0]
    assert strongest([first, second], 1).logit.tolist() == [2.0]


def test_a_flat_map_below_the_least_logit_has_no_peak() -> None:
    peaks = find_peaks(maps_with(), least_logit=-5, most=9)
    assert peaks.index_zyx.shape == (0, 3)
    assert to_candidates(peaks, Geometry(), (1.0, 0.0)) == []


def test_candidates_have_patient_coordinates_and_a_calibrated_score() -> None:
    peaks = Peaks(np.array([2.0]), np.array([[1.0, 2.0, 3.0]]), np.array([7.0]))
    geometry = Geometry((1.0, 1.0, 1.0), (10.0, 20.0, 30.0))
    (candidate,) = to_candidates(peaks, geometry, (0.5, 1.0))
    assert candidate.centre_mm == (13.0, 22.0, 31.0)
    assert candidate.index_zyx == (1.0, 2.0, 3.0)
    np.testing.assert_allclose(candidate.score, 1 / (1 + np.exp(-2.0)))


def test_sigmoid_equals_that_of_scipy_also_for_extreme_logits() -> None:
    logit = np.array([-1000, *np.linspace(-30, 30, 61), 1000])
    np.testing.assert_allclose(sigmoid(logit), expit(logit), rtol=1e-14)
