"""What the voxels tell of scanner and protocol."""

import numpy as np
import pytest

from imaging.acquisition import Acquisition, acquisition_of
from imaging.lungs import Lungs, find_lungs
from imaging.phantom.phantom import PhantomSpec
from imaging.volume import HuArray, Volume
from tests.conftest import Draw

SPEC = PhantomSpec(seed=4, spacing_mm=(2.5, 1.5, 1.5), size_mm=(280.0, 320.0, 320.0))


@pytest.fixture(scope="module")
def chest(drawn: Draw) -> Volume:
    return drawn(SPEC).volume


def measured(hu: HuArray) -> Acquisition:
    return acquisition_of(hu, SPEC.spacing_mm, find_lungs(hu, SPEC.spacing_mm, "phantom"))


def test_air_blood_and_noise_are_measured(chest: Volume) -> None:
    plain = measured(chest.hu)
    assert plain.air_hu == pytest.approx(-1000, abs=4)
    assert plain.blood_hu == pytest.approx(40, abs=25)
    chance = np.random.default_rng(0)
    noisy = measured((chest.hu + chance.normal(0, 40, chest.hu.shape)).round().astype(np.int16))
    assert plain.noise_hu is not None
    assert noisy.noise_hu == pytest.approx(np.hypot(plain.noise_hu, 40), rel=0.15)
    assert noisy.blood_hu == pytest.approx(plain.blood_hu, abs=5)


def test_contrast_medium_changes_the_blood_and_not_the_air(chest: Volume) -> None:
    """All soft tissue is made as bright as blood with contrast medium."""
    plain = measured(chest.hu)
    bright = np.where((chest.hu > 0) & (chest.hu < 90), chest.hu + 200, chest.hu)
    found = measured(bright.astype(np.int16))
    assert (found.air_hu, found.noise_hu) != (None, None)
    assert found.air_hu == plain.air_hu
    assert found.blood_hu == pytest.approx((plain.blood_hu or 0) + 200, abs=15)


@pytest.mark.parametrize("shape", [(1, 1, 1), (20, 1, 20), (20, 20, 1), (20, 2, 20)])
def test_of_tiny_lungs_nothing_is_measured(shape: tuple[int, int, int]) -> None:
    air, hu = np.ones(shape, np.uint8), np.full(shape, -800, np.int16)
    lungs = Lungs((0, 0, 0), shape, air, air, hu, shape)
    assert acquisition_of(hu, (4.0, 4.0, 4.0), lungs) == Acquisition()


def test_a_volume_without_air_around_the_patient_has_none(chest: Volume) -> None:
    lungs = find_lungs(chest.hu, chest.geometry.spacing_mm, "phantom")
    around = lungs.hu < -800
    lungs.hu[around & (lungs.air == 0)] = -1024
    assert acquisition_of(chest.hu, chest.geometry.spacing_mm, lungs).air_hu is None
